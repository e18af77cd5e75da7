# shellcheck shell=bash
# tools/dev setup: brings a bare Debian 12 to where everything else works. Idempotent: a second
# run finds its stamps and prints one line.

# shellcheck source=tools/lib/packages.sh
. "$KUASAR_LIB/packages.sh"
# shellcheck source=tools/lib/prefix.sh
. "$KUASAR_LIB/prefix.sh"
# shellcheck source=tools/lib/runtimes.sh
. "$KUASAR_LIB/runtimes.sh"
# shellcheck source=tools/lib/images.sh
. "$KUASAR_LIB/images.sh"
# shellcheck source=tools/lib/wasm.sh
. "$KUASAR_LIB/wasm.sh"
# shellcheck source=tools/lib/otlp.sh
. "$KUASAR_LIB/otlp.sh"

setup_usage() {
  cat <<'TEXT'
usage: tools/dev setup [--refresh]

Makes a bare Debian 12 ready, in six steps; each is skipped when it has been done before:
  1. installs the build dependencies of Debian 12 that are missing (needs root, uses apt-get);
  2. fetches containerd >= 2.1, CNI plugins, runc, busybox and Catch2 3 through a private apt
     root into .cache/prefix: nothing of these is installed, no service starts, /etc/apt stays;
  3. fetches a newer runc and crun with the C library they need into .cache/runtimes, the same way;
  4. makes the lab's container images in .cache/images from Debian's busybox;
  5. fetches WasmEdge with the C library it needs into .cache/wasmedge, the same way as 2,
     and Wasmtime (a wheel, by pip, where a Python registry can be reached) into .cache/wasmtime;
     builds the WebAssembly modules of the tests into .cache/modules;
  6. fetches OpenTelemetry's Python packages into .cache/otlp by pip, where that works.

  --refresh   fetch the packages of steps 2, 3, 5 and 6 anew, even when they are there

  KUASAR_CONTAINERD=/path/containerd   use this one (>= 2.1; ctr and containerd-shim-runc-v2
                                       are taken from beside it); otherwise a containerd >= 2.1
                                       in PATH is used, otherwise Debian's package
TEXT
}

setup_main() {
  local refresh=
  while (($#)); do
    case $1 in
      -h | --help) setup_usage; return 0 ;;
      --refresh) refresh=1 ;;
      *) die "setup: unknown option '$1'; tools/dev setup --help lists them" ;;
    esac
    shift
  done
  setup_all "$refresh"
}

# setup_all [REFRESH]: also the first step of `test` and `demo`.
setup_all() {
  local start
  start=$(now_ms)
  mkdir -p "$KUASAR_CACHE"
  packages_install_missing "${KUASAR_BUILD_PACKAGES[@]}"
  packages_install_optional
  prefix_provide "${1:-}"
  runtimes_provide "${1:-}"
  images_provide
  wasm_engine_provide "${1:-}"
  wasm_wasmtime_provide "${1:-}"
  wasm_modules_provide
  otlp_provide "${1:-}"
  print_step setup "ready: $(prefix_summary)" "$start"
}
