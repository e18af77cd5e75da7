# shellcheck shell=bash
# tools/dev bench: our sandboxer beside containerd's own shim, on a private containerd.

# shellcheck source=tools/lib/setup.sh
. "$KUASAR_LIB/setup.sh"
# shellcheck source=tools/lib/build.sh
. "$KUASAR_LIB/build.sh"
# shellcheck source=tools/lib/lab.sh
. "$KUASAR_LIB/lab.sh"

bench_usage() {
  cat <<'TEXT'
usage: tools/dev bench [--runtime runc|runc-1.3|crun] [FLAG...]
       tools/dev bench wasm

Measures the release build beside containerd's own shim with the same OCI runtime: a pod's steps
interleaved A B B A, 50 pods at once, memory, processes and CPU time at up to 500 pods, restarts.
Takes some five minutes and wants the machine for itself. Prints the table of docs/PERFORMANCE.md
and writes it to build/bench with the samples (JSON Lines) and their distributions (SVG). Exits 1
when an operation failed or a promise is missed.
  --runtime R    the OCI runtime of both sides: Debian 12's runc (the default), or one of
                 .cache/runtimes
  FLAG           of kuasar-bench: --rounds N, --most-pods N

wasm measures the containers of the wasm kind by themselves, both engines, with and without native
code and zygotes of modules, beside crun with WasmEdge (Debian trixie's, in a private prefix), a
process that forks and makes a virtual machine, and the engine's own command; results in
build/bench/wasm, docs/WASM.md has the table. A minute.
On your own node: kuasar-ctl bench --help
TEXT
}

# In a mount namespace whose cgroups are v2: trixie's crun runs on no others, also without them.
bench_wasm() {
  local status=0
  (($# == 0)) || die "bench wasm: unknown option '$1'; tools/dev bench --help says more"
  [[ $(id -u) == 0 ]] || die "bench needs root: it makes namespaces and mounts"
  setup_all
  wasm_peer_provide
  build_preset release
  mkdir -p "$KUASAR_BUILD/bench/wasm"
  lab_begin
  # shellcheck disable=SC2016 # its own words
  KUASAR_BENCH_OUT=$KUASAR_BUILD/bench/wasm KUASAR_LAB_WASM_PEER=$KUASAR_WASM_PEER \
    lab_run "$KUASAR_BUILD/release/bin" unshare -m sh -c \
    'mount --make-rprivate / && mount -t cgroup2 none /sys/fs/cgroup && exec "$@"' sh \
    "$KUASAR_BUILD/release/test/kuasar_integration_tests" '[.wasm-bench]' || status=$?
  lab_end "$status"
  return "$status"
}

bench_main() {
  local runtime='' status=0 hide=''
  if wants_help "$@"; then
    bench_usage
    return 0
  fi
  if [[ ${1:-} == wasm ]]; then
    shift
    bench_wasm "$@"
    return
  fi
  if [[ ${1:-} == --runtime ]]; then
    case ${2:-} in
      runc) ;;
      runc-1.3) runtime=$KUASAR_RUNTIMES/usr/sbin/runc ;;
      crun) runtime=$KUASAR_RUNTIMES/usr/bin/crun hide=1 ;;
      *) die "bench: --runtime is runc, runc-1.3 or crun; tools/dev bench --help says more" ;;
    esac
    shift 2
  fi
  [[ $(id -u) == 0 ]] || die "bench needs root: it makes namespaces, mounts and cgroups"
  setup_all
  build_preset release
  mkdir -p "$KUASAR_BUILD/bench"
  lab_begin
  KUASAR_LAB_RUNTIME=$runtime KUASAR_LAB_HIDE_UNIFIED=$hide \
    lab_run "$KUASAR_BUILD/release/bin" "$KUASAR_BUILD/release/test/kuasar_lab_bench" \
    --out "$KUASAR_BUILD/bench" "$@" || status=$?
  lab_end "$status"
  return "$status"
}
