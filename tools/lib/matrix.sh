# shellcheck shell=bash
# tools/dev matrix: the failure matrix of docs/RELIABILITY.md.

# shellcheck source=tools/lib/setup.sh
. "$KUASAR_LIB/setup.sh"
# shellcheck source=tools/lib/build.sh
. "$KUASAR_LIB/build.sh"
# shellcheck source=tools/lib/lab.sh
. "$KUASAR_LIB/lab.sh"

matrix_usage() {
  cat <<'TEXT'
usage: tools/dev matrix [--quick]

Lets the daemon, its keeper, both, containerd, a workload or the state directory's free space die
at each named moment of the Task calls of a container, and checks that nothing is lost, nothing
runs twice and nothing is left behind. One line per cell, then a table of victims and results. Uses
the asan build, which has failpoints. Then runs `tools/dev systemd --long`. Everything takes about
half an hour; --quick is what `tools/dev test` runs of the cells (4 minutes). With
KUASAR_MATRIX_ONLY=TEXT in the environment: the cells whose line contains TEXT.
TEXT
}

matrix_main() {
  local tests='[matrix],[.long-matrix]' quick='' status=0 log=$KUASAR_CACHE/log/matrix.log start
  if wants_help "$@"; then
    matrix_usage
    return 0
  fi
  if [[ ${1:-} == --quick ]]; then
    tests='[matrix]'
    quick=1
    shift
  fi
  (($# == 0)) || die "matrix: unknown option '$1'; tools/dev matrix --help says more"
  [[ $(id -u) == 0 ]] || die "matrix needs root: it makes namespaces, mounts and cgroups"
  setup_all
  build_preset release kuasar_e2e
  build_preset asan
  start=$(now_ms)
  lab_begin
  mkdir -p "${log%/*}"
  lab_run "$KUASAR_BUILD/asan/bin" "$KUASAR_BUILD/release/test/kuasar_e2e" "$tests" 2>&1 |
    tee "$log" | grep --line-buffered '^matrix ' || true
  status=${PIPESTATUS[0]}
  lab_end "$status"
  # The figures that the design promises: the release build's.
  if ((status == 0)) && [[ $tests == *long* ]]; then
    build_preset release
    lab_begin
    lab_run "$KUASAR_BUILD/release/bin" "$KUASAR_BUILD/release/test/kuasar_e2e" '[.numbers]' 2>&1 |
      tee -a "$log" | grep --line-buffered '^numbers ' || true
    status=${PIPESTATUS[0]}
    lab_end "$status"
  fi
  matrix_table "$log"
  ((status == 0)) || tail -n 40 "$log"
  print_step matrix "$(grep -c '^matrix ' "$log") cells passed" "$start"
  [[ -n $quick ]] || matrix_systemd || status=$?
  return "$status"
}

# matrix_systemd: a node with systemd that cannot be had here fails nothing; it says so itself.
matrix_systemd() {
  local status=0
  "$KUASAR_ROOT/tools/dev" systemd --long || status=$?
  ((status == 0 || status == 77))
}

# matrix_table LOG: cells that passed, by victim.
matrix_table() {
  printf '\n%-22s %8s %10s\n' victim cells 'longest s'
  awk '/^matrix / {
    victim = substr($0, 38, 20); sub(/ +[0-9]+ pods.*/, "", victim); sub(/ +$/, "", victim)
    took = $(NF - 1)
    count[victim]++
    if (took > longest[victim]) longest[victim] = took
  } END { for (v in count) printf "%-22s %8d %10.1f\n", v, count[v], longest[v] }' "$1" | sort
}
