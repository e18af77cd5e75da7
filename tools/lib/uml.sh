# shellcheck shell=bash
# tools/dev uml: the installed suite on a machine with systemd and cgroup v2 alone, which
# user-mode Linux boots: a kernel as an ordinary process.

# shellcheck source=tools/lib/systemd.sh
. "$KUASAR_LIB/systemd.sh"

readonly UML_DIR=$KUASAR_CACHE/uml
readonly UML_PACKAGE=user-mode-linux/bookworm
readonly UML_SECONDS=420

uml_usage() {
  cat <<'TEXT'
usage: tools/dev uml [TEST...]

Boots the node of `tools/dev systemd` under user-mode Linux (a kernel of its own, with cgroup v2 and
nothing of v1) and runs tests of test/systemd there; without arguments those of cgroups: limits,
usage, a real OOM kill, both cgroup drivers, kill -9 of the daemon. Takes a minute or two. Needs
root (to make the root file system); exits 77 where the archive has no user-mode Linux, or its kernel
cannot run on the processor.
TEXT
}

uml_main() {
  if wants_help "$@"; then
    uml_usage
    return 0
  fi
  [[ $(id -u) == 0 ]] || die "uml needs root: it makes a root file system"
  setup_all
  uml_provide || return
  systemd_provide_root
  build_preset release
  mkdir -p "$KUASAR_RESULTS"
  (($#)) || set -- '[cgroups]'
  (
    trap uml_tear_down EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    lab_begin
    uml_make_image
    uml_run "$@"
  )
}

# uml_provide: .cache/uml with the kernel and its modules; 77 where there is no such package.
uml_provide() {
  local start
  if prefix_stamp_is "$UML_DIR/.stamp" "want $UML_PACKAGE"; then return 0; fi
  prefix_make_apt_root
  if ! prefix_apt_get --print-uris download "${UML_PACKAGE%/*}" >/dev/null 2>&1; then
    printf 'SKIPPED      uml: the archive has no package %s\n' "${UML_PACKAGE%/*}"
    return "$SYSTEMD_SKIPPED"
  fi
  prefix_download "$UML_PACKAGE"
  start=$(now_ms)
  prefix_unpack "$UML_DIR"
  prefix_write_stamp "$UML_DIR/.stamp" "want $UML_PACKAGE"
  print_step uml "kernel $(uml_modules | xargs basename) in .cache/uml" "$start"
}

uml_modules() { find "$UML_DIR/usr/lib/uml/modules" -mindepth 1 -maxdepth 1; }

# uml_make_image: the node's root as an ext4 image, with a unit that runs the tests at boot.
uml_make_image() {
  local start root=$KUASAR_LAB_SCRATCH/root test=$KUASAR_ROOT/test/systemd/uml
  start=$(now_ms)
  systemd_make_root "$root"
  mkdir -p "$root/lab/modules"
  cp "$(uml_modules)/kernel/fs/overlayfs/overlay.ko" "$root/lab/modules/"
  cp "$KUASAR_PREFIX/bin/busybox" "$root/lab/bin/busybox" 2>/dev/null ||
    cp "$KUASAR_PREFIX/usr/bin/busybox" "$root/lab/bin/busybox"
  cp "$test"/*.service "$root/etc/systemd/system/"
  install -m 0755 "$test/run-tests" "$root/lab/bin/run-tests"
  systemctl --quiet --root="$root" enable lab-modules.service lab-tests.service
  systemctl --quiet --root="$root" disable lab-cgroups.service
  run_logged "$KUASAR_CACHE/log/uml-image.log" \
    mke2fs -q -t ext4 -d "$root" -m 0 "$KUASAR_LAB_SCRATCH/root.img" 2G ||
    die "mke2fs failed, see .cache/log/uml-image.log"
  rm -rf "$root"
  print_step image "the node's root as an ext4 image" "$start"
}

# uml_run TEST...: boots, waits for the end, reads what the tests left.
uml_run() {
  local start status base=$KUASAR_RESULTS/release-uml results=$KUASAR_LAB_SCRATCH/results
  start=$(now_ms)
  mkdir -p "$results" "$KUASAR_LAB_SCRATCH/tmp"
  printf '%s\n' "$@" >"$results/tests"
  status=0
  # The guest's memory is a file; its host file system begins at the directory for results.
  TMPDIR=$KUASAR_LAB_SCRATCH/tmp timeout -k 10 "$UML_SECONDS" "$UML_DIR/usr/bin/linux.uml" \
    mem=2G ubd0="$KUASAR_LAB_SCRATCH/root.img" root=/dev/ubda rw con0=null,fd:1 con=null quiet \
    hostfs="$results" systemd.unified_cgroup_hierarchy=1 </dev/null >"$base.boot.log" 2>&1 ||
    status=$?
  if [[ ! -s $results/status ]]; then
    # Linux 6.1's UML gives a process its floating point registers back in a buffer of a fixed size:
    # EFAULT where the processor has more of them (seen with AMX), and it panics at its first one.
    if grep -q 'ptrace set fp regs failed' "$base.boot.log"; then
      printf 'SKIPPED      uml: its kernel panics on this processor, which has more registers than it knows\n'
      exit "$SYSTEMD_SKIPPED"
    fi
    tail -n 40 "$base.boot.log"
    die "the node under user-mode Linux has not come to its tests (ended with $status)"
  fi
  status=$(<"$results/status")
  cp "$results/log" "$base.log"
  systemd_report uml "$results" "$status" "$start"
}

# A trap on EXIT runs it: the exit code is that of before. The kernel's processes end with it.
uml_tear_down() {
  local status=$?
  set +e
  [[ -z $KUASAR_LAB_SCRATCH ]] || rm -rf --one-file-system "$KUASAR_LAB_SCRATCH" || status=1
  exit "$status"
}
