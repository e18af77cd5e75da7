# shellcheck shell=bash
# tools/dev build: configures and builds a preset of CMakePresets.json.

build_usage() {
  cat <<'TEXT'
usage: tools/dev build [--preset dev|release|asan|tsan|fuzz] [--target NAME]...

Configures and builds one preset into build/<preset>, with ccache. Without --preset: dev.
Without --target: everything in the preset, the tests too. Run `tools/dev setup` first.
TEXT
}

build_main() {
  local preset=dev targets=()
  while (($#)); do
    case $1 in
      -h | --help) build_usage; return 0 ;;
      --preset) preset=${2:?--preset needs a name}; shift ;;
      --preset=*) preset=${1#*=} ;;
      --target) targets+=("${2:?--target needs a name}"); shift ;;
      --target=*) targets+=("${1#*=}") ;;
      *) die "build: unknown option '$1'; tools/dev build --help lists them" ;;
    esac
    shift
  done
  build_check_preset "$preset"
  build_preset "$preset" "${targets[@]}"
}

build_check_preset() {
  case $1 in
    dev | release | asan | tsan | fuzz) ;;
    *) die "build: no preset '$1'; there are dev, release, asan, tsan and fuzz" ;;
  esac
}

# build_preset PRESET [TARGET...]: prints one line; the compiler's output only when it fails.
build_preset() {
  local preset=$1 start log=$KUASAR_CACHE/log/build-$1.log arguments=()
  shift
  (($# == 0)) || arguments=(--target "$@")
  command -v cmake >/dev/null || die "cmake is missing: run tools/dev setup"
  start=$(now_ms)
  if ! run_logged "$log" build_run "$preset" "${arguments[@]}"; then
    print_step build "$preset: FAILED, see ${log#"$KUASAR_ROOT"/}" "$start"
    return 1
  fi
  print_step build "preset $preset into build/$preset" "$start"
}

build_run() {
  local preset=$1
  shift
  cd "$KUASAR_ROOT" || return
  cmake --preset "$preset" && cmake --build --preset "$preset" -j "$(nproc)" "$@"
}
