# shellcheck shell=bash
# tools/dev demo: a pod on a private, unmodified containerd, before the reader's eyes.

# shellcheck source=tools/lib/setup.sh
. "$KUASAR_LIB/setup.sh"
# shellcheck source=tools/lib/build.sh
. "$KUASAR_LIB/build.sh"
# shellcheck source=tools/lib/lab.sh
. "$KUASAR_LIB/lab.sh"

demo_usage() {
  cat <<'TEXT'
usage: tools/dev demo

Sets up what is missing, builds and installs the sandboxer into build/demo-prefix, starts it and a
containerd of its own, runs a pod with two containers and shows their logs, the process tree, the
daemon's memory and the time to the first output, then a pod of WebAssembly modules on the same
containerd. Everything is private to the demo and is removed at its end. Needs root. The first run
builds (minutes); later ones take seconds.
TEXT
}

demo_main() {
  local start status=0
  if wants_help "$@"; then
    demo_usage
    return 0
  fi
  (($# == 0)) || die "demo: unknown option '$1'; tools/dev demo --help says more"
  [[ $(id -u) == 0 ]] || die "demo needs root: it makes namespaces, mounts and cgroups"
  setup_all
  build_preset release kuasar_programs kuasar_demo

  start=$(now_ms)
  run_logged "$KUASAR_CACHE/log/install.log" \
    cmake --install "$KUASAR_BUILD/release" --prefix "$KUASAR_BUILD/demo-prefix" --strip ||
    die "cmake --install failed"
  print_step install "into build/demo-prefix" "$start"

  lab_begin
  lab_run "$KUASAR_BUILD/demo-prefix/bin" "$KUASAR_BUILD/release/test/demo/kuasar_demo" ||
    status=$?
  lab_end "$status"
  return "$status"
}
