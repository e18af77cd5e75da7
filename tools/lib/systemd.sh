# shellcheck shell=bash
# tools/dev systemd: the installed suite on a node with systemd, which systemd-nspawn boots.

# shellcheck source=tools/lib/setup.sh
. "$KUASAR_LIB/setup.sh"
# shellcheck source=tools/lib/build.sh
. "$KUASAR_LIB/build.sh"
# shellcheck source=tools/lib/lab.sh
. "$KUASAR_LIB/lab.sh"
# shellcheck source=tools/lib/results.sh
. "$KUASAR_LIB/results.sh"

readonly SYSTEMD_FORMAT=1
readonly SYSTEMD_TAR=$KUASAR_CACHE/systemd-root.tar
# What the node itself needs: systemd, CNI's helpers, and the libraries of daemon, runc and tests.
readonly SYSTEMD_PACKAGES=(
  systemd systemd-sysv dbus iptables iproute2 procps mount
  libgrpc++1.51 libprotobuf32 libfmt9 libboost-json1.81.0 libsystemd0 libseccomp2
  libprometheus-cpp-core1.0
)
# The exit code that says "cannot run here"; the reason has been printed.
readonly SYSTEMD_SKIPPED=77

SYSTEMD_NAME=
SYSTEMD_NSPAWN=

systemd_usage() {
  cat <<'TEXT'
usage: tools/dev systemd [--long] [TEST...]

Installs the release build into a minimal Debian 12 with systemd, boots that with systemd-nspawn
beside a containerd with our drop-in, and runs the tests of test/systemd in it:
  - units come up in order; systemctl restart and kill of daemon, keeper and containerd with pods
  - another version is installed and the daemon restarted every few seconds under load
  - a keeper that cannot take over leaves the old one serving
The load runs for 20 s; --long: for 3 minutes. The root is made once, into .cache. Everything else
is private to the run and removed at its end. Needs root; exits 77 where nspawn cannot boot.
TEXT
}

systemd_main() {
  local seconds=20
  while (($#)); do
    case $1 in
      -h | --help) systemd_usage; return 0 ;;
      --long) seconds=180 ;;
      -*) die "systemd: unknown option '$1'; tools/dev systemd --help lists them" ;;
      *) break ;;
    esac
    shift
  done
  [[ $(id -u) == 0 ]] || die "systemd needs root: it boots a container"
  setup_all
  systemd_provide_root
  build_preset release
  systemd_run "$seconds" "$@"
}

# systemd_provide_root: .cache/systemd-root.tar with the packages above, unless it is there.
systemd_provide_root() {
  local start wanted archive uri keyring work options=
  wanted="format $SYSTEMD_FORMAT ${SYSTEMD_PACKAGES[*]}"
  if [[ -f $SYSTEMD_TAR && -f $SYSTEMD_TAR.stamp && $(<"$SYSTEMD_TAR.stamp") == "$wanted" ]]; then
    return 0
  fi
  start=$(now_ms)
  archive=$(prefix_archive)
  if [[ -z $archive ]]; then
    run_logged "$KUASAR_CACHE/log/apt-update.log" apt-get -q update || die "apt-get update failed"
    archive=$(prefix_archive)
  fi
  [[ -n $archive ]] || die "no Debian archive in this machine's apt sources"
  uri=${archive%%|*}
  keyring=$(prefix_keyring "$uri" "${archive#*|}")
  [[ -z $keyring ]] || options="[signed-by=$keyring] "
  work=$(mktemp -d)
  # The machine's own ways to its archive (proxies, retries); its index targets are not the root's.
  apt-config dump Acquire | grep -vE '^Acquire::(IndexTargets|CompressionTypes)' >"$work/apt.conf"
  rm -f "$SYSTEMD_TAR.stamp"
  # shellcheck disable=SC2016 # $1 is mmdebstrap's
  run_logged "$KUASAR_CACHE/log/systemd-root.log" mmdebstrap --variant=minbase --format=tar \
    --aptopt="$work/apt.conf" --include="$(IFS=,; printf '%s' "${SYSTEMD_PACKAGES[*]}")" \
    --customize-hook='rm -f "$1"/etc/apt/apt.conf.d/99mmdebstrap "$1"/etc/apt/sources.list' \
    bookworm "$SYSTEMD_TAR" "deb $options$uri bookworm main" ||
    die "mmdebstrap failed, see .cache/log/systemd-root.log"
  rm -rf "$work"
  printf '%s\n' "$wanted" >"$SYSTEMD_TAR.stamp"
  print_step root "made .cache/systemd-root.tar by mmdebstrap" "$start"
}

# systemd_run SECONDS [TEST...]: in a subshell, whose end, however it comes, removes everything.
systemd_run() {
  mkdir -p "$KUASAR_RESULTS"
  (
    trap systemd_tear_down EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    systemd_remove_stale
    lab_begin
    SYSTEMD_NAME=kuasar-sd-$BASHPID
    systemd_boot
    systemd_test "$@"
  )
}

systemd_boot() {
  local start
  start=$(now_ms)
  systemd_make_root "$KUASAR_LAB_SCRATCH/root"
  systemd_make_cgroups || systemd_skip "no cgroup hierarchy that one can make cgroups in"
  systemd_nspawn "$KUASAR_LAB_SCRATCH/root" </dev/null >"$KUASAR_RESULTS/nspawn.log" 2>&1 &
  SYSTEMD_NSPAWN=$!
  systemd_await 30 systemd_is_up || {
    tail -n 20 "$KUASAR_RESULTS/nspawn.log"
    systemd_skip "systemd-nspawn does not boot here"
  }
  systemd_await 60 systemd_inside systemctl --quiet is-active containerd || {
    systemd_inside journalctl --no-pager -n 60
    die "containerd does not come up on the node"
  }
  systemd_inside sh -ec 'for i in /lab/images/*.tar; do
    ctr -n k8s.io images import "$i"; done' >"$KUASAR_RESULTS/import.log" 2>&1 ||
    { tail "$KUASAR_RESULTS/import.log"; die "images cannot be imported on the node"; }
  print_step node "booted: $(systemd_inside systemctl --version | sed -n 1p)" "$start"
}

systemd_skip() {
  printf 'SKIPPED      systemd: %s\n' "$*"
  exit "$SYSTEMD_SKIPPED"
}

# systemd_make_root ROOT: Debian, the suite as an administrator installs it, and a containerd.
systemd_make_root() {
  local root=$1 test=$KUASAR_ROOT/test/systemd/root build=$KUASAR_BUILD/release unit
  mkdir -p "$root"
  tar -C "$root" -xf "$SYSTEMD_TAR"
  DESTDIR=$root run_logged "$KUASAR_CACHE/log/install.log" \
    cmake --install "$build" --prefix /usr/local --strip || die "cmake --install failed"

  mkdir -p "$root"/usr/local/lib/cni "$root"/etc/{containerd/conf.d,cni/net.d} \
    "$root"/lab/{images,bin,next,this,results}
  cp -L "$KUASAR_PREFIX"/usr/bin/{containerd,ctr,containerd-shim-runc-v2} "$root/usr/local/bin/"
  cp -L "$KUASAR_PREFIX/usr/sbin/runc" "$root/usr/local/sbin/"
  cp -L "$KUASAR_PREFIX"/usr/lib/cni/{bridge,host-local,loopback} "$root/usr/local/lib/cni/"
  cp "$root/usr/local/share/kuasar/containerd/kuasar-runc.toml" "$root/etc/containerd/conf.d/"
  cp "$test/config.toml" "$root/etc/containerd/"
  cp "$test/10-lab.conflist" "$root/etc/cni/net.d/"
  cp "$test"/*.service "$root/etc/systemd/system/"
  systemd_add_wasm "$root"

  cp "$KUASAR_IMAGES"/*.tar "$root/lab/images/"
  cp "$build/test/kuasar_systemd" "$root/lab/bin/"
  cp -r "$build/test/next/." "$root/lab/next/"
  cp -r "$root"/usr/local/{bin,libexec} "$root/lab/this/"
  for unit in lab-cgroups containerd runc-sandboxer wasm-sandboxer; do
    systemctl --quiet --root="$root" enable "$unit.service"
  done
}

# systemd_add_wasm ROOT: the handler, and the engine where this machine has it.
systemd_add_wasm() {
  local root=$1 engine loader libraries
  cp "$root/usr/local/share/kuasar/containerd/kuasar-wasm.toml" "$root/etc/containerd/conf.d/"
  [[ -d $KUASAR_WASMEDGE/usr ]] || return 0
  engine=$(realpath "$KUASAR_WASMEDGE")
  loader=$(wasm_loader "$KUASAR_WASMEDGE")
  libraries=$(wasm_library_path "$KUASAR_WASMEDGE")
  mkdir -p "$root/lab/wasmedge/usr" "$root/etc/kuasar"
  cp -a "$engine"/usr/lib* "$root/lab/wasmedge/usr/"
  printf '%s = "%s"\n' wasmedge_loader "/lab/wasmedge${loader#"$engine"}" \
    wasmedge_library_path "/lab/wasmedge${libraries#"$engine"}" >"$root/etc/kuasar/wasm.toml"
}

# The node's cgroups all lie below one of ours in each hierarchy: its cgroup namespace begins there,
# and afterwards one knows what to remove.
systemd_make_cgroups() {
  local dir hierarchy file
  for hierarchy in /sys/fs/cgroup/*/; do
    [[ -e $hierarchy/cgroup.procs ]] || continue
    dir=$hierarchy$SYSTEMD_NAME
    mkdir "$dir" || return
    for file in cpuset.cpus cpuset.mems; do
      if [[ -e $dir/$file ]]; then cat "$hierarchy$file" >"$dir/$file"; fi
    done
  done
  [[ -n ${dir:-} ]]
}

systemd_nspawn() {
  local dir
  for dir in /sys/fs/cgroup/*/"$SYSTEMD_NAME"; do
    printf '%s\n' "$BASHPID" >"$dir/cgroup.procs"
  done
  exec systemd-nspawn --keep-unit --register=no --capability=all \
    --system-call-filter='@keyring bpf' --private-network -D "$1" -M "$SYSTEMD_NAME" \
    --boot --console=pipe
}

systemd_leader() { pgrep -P "$SYSTEMD_NSPAWN" | sed -n 1p; }

# systemd_inside COMMAND...: as root on the node.
systemd_inside() {
  nsenter -a -t "$(systemd_leader)" -- /usr/bin/env -i \
    PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin LANG=C.UTF-8 \
    KUASAR_SYSTEMD_SECONDS="${SYSTEMD_SECONDS:-20}" "$@"
}

systemd_is_up() {
  [[ -n $(systemd_leader) ]] &&
    systemd_inside systemctl is-system-running 2>/dev/null | grep -qxE 'running|degraded'
}

# systemd_await SECONDS COMMAND...: true once COMMAND is, false when the time is over or nspawn
# has ended.
systemd_await() {
  local end=$(($(now_ms) + $1 * 1000))
  shift
  until "$@"; do
    (($(now_ms) < end)) && kill -0 "$SYSTEMD_NSPAWN" 2>/dev/null || return 1
    sleep 0.1
  done
}

systemd_test() {
  local SYSTEMD_SECONDS=$1 start status=0
  local base=$KUASAR_RESULTS/release-systemd results=$KUASAR_LAB_SCRATCH/root/lab/results
  shift
  start=$(now_ms)
  systemd_inside timeout -k 10 "$((SYSTEMD_SECONDS + 240))" /lab/bin/kuasar_systemd "$@" \
    --reporter console --reporter junit::out=/lab/results/junit.xml \
    --reporter xml::out=/lab/results/xml >"$base.log" 2>&1 </dev/null || status=$?
  ((status == 0)) ||
    systemd_inside journalctl --no-pager -o short-precise >"$results/journal" 2>&1 || true
  systemd_report systemd "$results" "$status" "$start"
}

# systemd_report STAGE DIR STATUS START: what the tests of a node left in DIR becomes results of this
# run, next to release-STAGE.log; fails when they did.
systemd_report() {
  local stage=$1 results=$2 status=$3 start=$4 base=$KUASAR_RESULTS/release-$1
  cp "$results/xml" "$base.xml" && cp "$results/junit.xml" "$base.junit.xml" || true
  grep -E '^(units|upgrade|cgroups): ' "$base.log" || true
  print_step "$stage" "$(results_words "$(results_counts "$base.xml" "$status")")" "$start"
  results_reasons "$base.xml"
  ((status != 0)) || return 0
  results_failures "$base.xml"
  tail -n 60 "$base.log"
  cp "$results/journal" "$base.journal" || true
  printf -- '--- the journal of the node is in %s\n' "${base#"$KUASAR_ROOT"/}.journal"
  return 1
}

# systemd_remove_cgroups NAME: kills what is in them, nspawn and the node's PID 1, with which all of
# its PID namespace ends; false when something is left.
systemd_remove_cgroups() {
  local dir left
  for _ in {1..100}; do
    left=
    for dir in /sys/fs/cgroup/*/"$1"; do
      [[ -d $dir ]] || continue
      find "$dir" -name cgroup.procs -exec cat {} + 2>/dev/null |
        sort -u | grep -vx 0 | xargs -r kill -KILL
      find "$dir" -depth -type d -exec rmdir {} +
      [[ ! -d $dir ]] || left=$dir
    done 2>/dev/null
    [[ -n $left ]] || return 0
    sleep 0.1
  done
  printf 'left behind: %s\n' "$left" >&2
  return 1
}

# What runs left behind whose shell was killed.
systemd_remove_stale() {
  local dir
  for dir in /sys/fs/cgroup/*/kuasar-sd-*; do
    [[ ! -d $dir || -d /proc/${dir##*-} ]] || systemd_remove_cgroups "${dir##*/}" || true
  done
}

# A trap on EXIT runs it: the exit code is that of before, unless something is left.
systemd_tear_down() {
  local status=$?
  set +e
  [[ -z $SYSTEMD_NAME ]] || systemd_remove_cgroups "$SYSTEMD_NAME" || status=1
  [[ -z $SYSTEMD_NSPAWN ]] || wait "$SYSTEMD_NSPAWN" 2>/dev/null
  [[ -z $KUASAR_LAB_SCRATCH ]] || rm -rf --one-file-system "$KUASAR_LAB_SCRATCH" || status=1
  exit "$status"
}
