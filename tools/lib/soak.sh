# shellcheck shell=bash
# tools/dev soak: pods come and go for an hour while daemon and keeper are killed.

# shellcheck source=tools/lib/setup.sh
. "$KUASAR_LIB/setup.sh"
# shellcheck source=tools/lib/build.sh
. "$KUASAR_LIB/build.sh"
# shellcheck source=tools/lib/lab.sh
. "$KUASAR_LIB/lab.sh"

soak_usage() {
  cat <<'TEXT'
usage: tools/dev soak [--minutes N]

Makes, uses and removes pods on a private containerd, up to 20 per second as far as the machine goes,
with exec, stats and stop between, and kills daemon and keeper in turn with -9 every minute, for an
hour or N minutes. Prints a table of the operations. Exits 1 when one failed that no kill had cut,
when the daemon's memory has grown, or when something is left at the end.
TEXT
}

soak_main() {
  local minutes=60 status=0 log=$KUASAR_CACHE/log/soak.log start
  while (($#)); do
    case $1 in
      -h | --help) soak_usage; return 0 ;;
      --minutes) minutes=${2:?--minutes needs a number}; shift ;;
      --minutes=*) minutes=${1#*=} ;;
      *) die "soak: unknown option '$1'; tools/dev soak --help says more" ;;
    esac
    shift
  done
  [[ $minutes =~ ^[1-9][0-9]*$ ]] || die "soak: --minutes is a whole number from 1 on, not '$minutes'"
  [[ $(id -u) == 0 ]] || die "soak needs root: it makes namespaces, mounts and cgroups"
  setup_all
  build_preset release
  start=$(now_ms)
  lab_begin
  mkdir -p "${log%/*}"
  KUASAR_SOAK_MINUTES=$minutes lab_run "$KUASAR_BUILD/release/bin" \
    "$KUASAR_BUILD/release/test/kuasar_e2e" '[.soak]' 2>&1 |
    tee "$log" | grep --line-buffered '^soak ' || status=$?
  lab_end "$status"
  ((status == 0)) || tail -n 60 "$log"
  print_step soak "$minutes minutes: $( ((status == 0)) && printf passed || printf FAILED)" "$start"
  return "$status"
}
