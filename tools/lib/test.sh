# shellcheck shell=bash
# tools/dev test: every stage of CI, with its time, and one line of counts at the end.

# shellcheck source=tools/lib/setup.sh
. "$KUASAR_LIB/setup.sh"
# shellcheck source=tools/lib/build.sh
. "$KUASAR_LIB/build.sh"
# shellcheck source=tools/lib/lab.sh
. "$KUASAR_LIB/lab.sh"
# shellcheck source=tools/lib/results.sh
. "$KUASAR_LIB/results.sh"

readonly FUZZ_SECONDS=30

TEST_PASSED=0
TEST_FAILED=0
TEST_SKIPPED=0

test_usage() {
  cat <<'TEXT'
usage: tools/dev test [--quick]

Runs, each with its time: setup, the release build, check and its self-test, the unit, integration
and e2e tests, the same with the daemon built with ASan+UBSan, every fuzz target for 30 s, traps.
  --quick   without the sanitizer build and the fuzz targets

The last line is "N passed, N failed, N skipped": test cases, and one for each other stage.
A stage that cannot run counts as failed. Results: build/test-results/. Exits 1 on any failure.
TEXT
}

test_main() {
  local quick='' start
  while (($#)); do
    case $1 in
      -h | --help) test_usage; return 0 ;;
      --quick) quick=1 ;;
      *) die "test: unknown option '$1'; tools/dev test --help lists them" ;;
    esac
    shift
  done
  start=$(now_ms)
  rm -rf "$KUASAR_RESULTS"
  mkdir -p "$KUASAR_RESULTS"
  test_stages "$quick"
  print_step test "all stages" "$start"
  printf '%d passed, %d failed, %d skipped\n' "$TEST_PASSED" "$TEST_FAILED" "$TEST_SKIPPED"
  ((TEST_FAILED == 0))
}

test_stages() {
  local quick=$1
  # A stage that ends in die() ends its subshell only.
  test_stage setup "$KUASAR_ROOT/tools/dev" setup
  test_stage check "$KUASAR_ROOT/tools/dev" check
  test_stage check "$KUASAR_ROOT/tools/dev" check --self-test
  test_preset release
  if [[ -z $quick ]]; then
    test_preset asan
    test_fuzz
  fi
  test_stage traps "$KUASAR_ROOT/tools/dev" traps
}

# test_count PASSED FAILED SKIPPED
test_count() {
  TEST_PASSED=$((TEST_PASSED + $1))
  TEST_FAILED=$((TEST_FAILED + $2))
  TEST_SKIPPED=$((TEST_SKIPPED + $3))
}

# test_stage NAME COMMAND...: a stage that passes or fails as a whole and prints its own lines.
test_stage() {
  local name=$1
  shift
  if "$@" </dev/null; then
    test_count 1 0 0
  else
    printf 'FAILED       stage %s\n' "$name"
    test_count 0 1 0
  fi
}

# test_preset PRESET: builds it and runs its unit, integration and e2e tests.
test_preset() {
  local preset=$1 suite
  if ! (build_preset "$preset"); then
    test_count 0 1 0
    for suite in unit integration e2e; do
      printf 'FAILED       %s (%s): cannot run, the build failed\n' "$suite" "$preset"
      test_count 0 1 0
    done
    return 0
  fi
  test_count 1 0 0
  test_suite "$preset" unit kuasar_unit_tests 120
  test_suite "$preset" integration kuasar_integration_tests 600
  # The e2e program itself is not under test: release's runs against each preset's daemon.
  test_suite "$preset" e2e kuasar_e2e 1500 release
}

# test_suite PRESET SUITE BINARY SECONDS [BUILT]: one Catch2 binary, built with preset BUILT (else
# PRESET), in a scratch directory of its own, against the daemon of PRESET.
test_suite() {
  local preset=$1 suite=$2 limit=$4 built=${5:-$1} start status=0 counts failed
  local binary=$KUASAR_BUILD/$built/test/$3 base=$KUASAR_RESULTS/$preset-$suite
  start=$(now_ms)
  if [[ ! -x $binary ]]; then
    test_count 0 1 0
    print_step "$suite" "$preset: FAILED, ${binary#"$KUASAR_ROOT"/} does not exist" "$start"
    return 0
  fi
  lab_begin
  ASAN_OPTIONS=detect_leaks=1:log_path=$base.sanitizer \
    UBSAN_OPTIONS=print_stacktrace=1:log_path=$base.sanitizer \
    lab_run "$KUASAR_BUILD/$preset/bin" timeout -k 10 "$limit" \
    "$binary" --reporter console --reporter "junit::out=$base.junit.xml" \
    --reporter "xml::out=$base.xml" >"$base.log" 2>&1 </dev/null || status=$?
  counts=$(results_counts "$base.xml" "$status")
  # shellcheck disable=SC2086 # three words
  test_count $counts
  failed=$(cut -d ' ' -f 2 <<<"$counts")
  test_sanitizer_reports "$base" || failed=$((failed + 1))
  print_step "$suite" "$preset: $(results_words "$counts")" "$start"
  ((failed == 0)) || test_show_failures "$base" "$status" "$limit"
  results_reasons "$base.xml"
  lab_end "$((failed > 0))"
}

# test_sanitizer_reports BASE: reports of the test binary or of a daemon under test are a failure,
# whatever the tests themselves thought.
test_sanitizer_reports() {
  local report reports=()
  for report in "$1".sanitizer.*; do
    [[ ! -s $report ]] || reports+=("$report")
  done
  ((${#reports[@]})) || return 0
  test_count 0 1 0
  printf 'FAILED       %d sanitizer reports, the first:\n' "${#reports[@]}"
  head -n 30 "${reports[0]}"
  return 1
}

test_show_failures() {
  local base=$1 status=$2 limit=$3
  if ((status == 124 || status == 137)); then
    printf 'FAILED       stopped after %s s in: %s\n' "$limit" "$(results_last_case "$base.xml")"
  fi
  results_failed_names "$base.xml"
  printf -- '--- the last lines of %s:\n' "${base#"$KUASAR_ROOT"/}.log"
  tail -n 60 "$base.log"
}

# test_fuzz: every libFuzzer target at once, each on a copy of its corpus.
test_fuzz() {
  local start binary name found=0 status jobs=()
  if ! (build_preset fuzz); then
    test_count 0 1 0
    return 0
  fi
  start=$(now_ms)
  for binary in "$KUASAR_BUILD"/fuzz/test/fuzz/fuzz_*; do
    [[ -x $binary && ! -d $binary ]] || continue
    found=1
    name=${binary##*/}
    test_fuzz_one "$binary" "$name" &
    jobs+=("$!:$name")
  done
  if ((!found)); then
    test_count 0 1 0
    print_step fuzz "FAILED: there is no target build/fuzz/test/fuzz/fuzz_*" "$start"
    return 0
  fi
  for binary in "${jobs[@]}"; do
    status=0
    wait "${binary%%:*}" || status=$?
    name=${binary#*:}
    if ((status == 0)); then
      test_count 1 0 0
      print_step fuzz "$name: $(results_fuzz_words "$KUASAR_RESULTS/$name.log")" "$start"
    else
      test_count 0 1 0
      print_step fuzz "$name: FAILED, see build/test-results/$name.log" "$start"
      tail -n 30 "$KUASAR_RESULTS/$name.log"
    fi
  done
}

test_fuzz_one() {
  local binary=$1 name=$2 corpus
  corpus=$(mktemp -d)
  if [[ -d $KUASAR_ROOT/test/fuzz/corpus/${name#fuzz_} ]]; then
    cp -r "$KUASAR_ROOT/test/fuzz/corpus/${name#fuzz_}/." "$corpus/"
  fi
  local status=0
  ASAN_SYMBOLIZER_PATH=/usr/bin/llvm-symbolizer-14 \
    timeout -k 10 $((FUZZ_SECONDS + 60)) "$binary" -max_total_time=$FUZZ_SECONDS \
    -print_final_stats=1 -artifact_prefix="$KUASAR_RESULTS/$name-" "$corpus" \
    >"$KUASAR_RESULTS/$name.log" 2>&1 </dev/null || status=$?
  rm -rf "$corpus"
  return "$status"
}
