# shellcheck shell=bash
# What every command of tools/dev shares: the environment, places, and one line per step.

export LC_ALL=C.UTF-8 LANG=C.UTF-8 DEBIAN_FRONTEND=noninteractive
export PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
export CCACHE_BASEDIR=$KUASAR_ROOT CCACHE_NOHASHDIR=1
if [[ -z ${HOME:-} ]]; then
  export CCACHE_DIR=${CCACHE_DIR:-$KUASAR_ROOT/.cache/ccache}
fi

# shellcheck disable=SC2034 # used by the commands
readonly KUASAR_CACHE=$KUASAR_ROOT/.cache KUASAR_PREFIX=$KUASAR_ROOT/.cache/prefix \
  KUASAR_RUNTIMES=$KUASAR_ROOT/.cache/runtimes KUASAR_IMAGES=$KUASAR_ROOT/.cache/images \
  KUASAR_WASMEDGE=$KUASAR_ROOT/.cache/wasmedge KUASAR_MODULES=$KUASAR_ROOT/.cache/modules \
  KUASAR_WASMTIME=$KUASAR_ROOT/.cache/wasmtime KUASAR_WASM_PEER=$KUASAR_ROOT/.cache/wasm-peer \
  KUASAR_BUILD=$KUASAR_ROOT/build KUASAR_RESULTS=$KUASAR_ROOT/build/test-results

die() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

# now_ms: milliseconds of a clock, without starting a process.
now_ms() {
  local t=${EPOCHREALTIME/[.,]/}
  printf '%s' "$((t / 1000))"
}

# seconds_since START_MS: "12.3", for people.
seconds_since() {
  local ms=$(($(now_ms) - $1))
  printf '%d.%d' "$((ms / 1000))" "$((ms % 1000 / 100))"
}

# print_step NAME TEXT START_MS: one line of at most 100 columns that ends with the time taken.
print_step() {
  local text=${2//$'\n'/ }
  printf '%-12s %-76.76s %8ss\n' "$1" "$text" "$(seconds_since "$3")"
}

# run_logged LOG COMMAND...: output goes to LOG; when the command fails the log's end is shown.
run_logged() {
  local log=$1 status=0
  shift
  mkdir -p "${log%/*}"
  "$@" >"$log" 2>&1 </dev/null || status=$?
  if ((status != 0)); then
    printf '%s\n' "--- the last lines of $log:" >&2
    tail -n 40 "$log" >&2
  fi
  return "$status"
}

# wants_help ARG...: true when an argument asks for help.
wants_help() {
  local arg
  for arg in "$@"; do
    [[ $arg == -h || $arg == --help ]] && return 0
  done
  return 1
}
