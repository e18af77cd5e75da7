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
# What failed and is no test case of a results file.
TEST_FAILURES=()

test_usage() {
  cat <<'TEXT'
usage: tools/dev test [--quick]

Runs, each with its time: setup, the release build, check and its self-test, the unit, integration
and e2e tests, part of the e2e tests with another runc and with crun, the units on a node with
systemd (tools/dev systemd), cgroups on one with cgroup v2 (tools/dev uml), the unit, integration
and e2e tests with the daemon built with ASan+UBSan, every fuzz target for 30 s, traps.
  --quick   without the sanitizer build and the fuzz targets

The last line is "N passed, N failed, N skipped": test cases, and one for each other stage.
A stage that cannot run counts as failed, but for systemd where systemd-nspawn cannot boot, and uml
where the archive does not have it or the processor is too new for it: those are skipped, with the
reason.
Results: build/test-results/. Exits 1 on any failure.
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
  test_recall
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
  test_stage install test_install
  test_stage systemd "$KUASAR_ROOT/tools/dev" systemd
  test_stage uml "$KUASAR_ROOT/tools/dev" uml
  test_runtimes release
  if [[ -z $quick ]]; then
    test_preset asan
    # With user namespaces, which the lab's own runc does not have.
    KUASAR_LAB_RUNTIME=$KUASAR_RUNTIMES/usr/sbin/runc \
      test_suite asan e2e-steps kuasar_e2e 300 release 'T10 T25: failed steps*'
    test_fuzz
  fi
  test_stage traps test_traps
}

# test_recall: what failed, once more, where whoever reads only the end will find it.
test_recall() {
  local line failures
  ((TEST_FAILED > 0)) || return 0
  printf '\nwhat failed:\n'
  for line in "${TEST_FAILURES[@]}"; do printf 'FAILED       %s\n' "$line"; done
  while IFS= read -r line; do
    failures=$(results_failures "$line")
    [[ -z $failures ]] || printf '%s:\n%s\n' "$(basename "$line" .xml)" "$failures"
  done < <(find "$KUASAR_RESULTS" -name '*.xml' ! -name '*.junit.xml' | sort)
}

# test_count PASSED FAILED SKIPPED
test_count() {
  TEST_PASSED=$((TEST_PASSED + $1))
  TEST_FAILED=$((TEST_FAILED + $2))
  TEST_SKIPPED=$((TEST_SKIPPED + $3))
}

# test_fail WORDS: one failure that is no test case.
test_fail() {
  printf 'FAILED       %s\n' "$1"
  TEST_FAILURES+=("$1")
  test_count 0 1 0
}

# test_stage NAME COMMAND...: a stage that passes or fails as a whole and prints its own lines. Exit
# code 77 means that it cannot run here and has said why: skipped.
test_stage() {
  local name=$1 status=0
  shift
  "$@" </dev/null || status=$?
  case $status in
    0) test_count 1 0 0 ;;
    77) test_count 0 0 1 ;;
    *) test_fail "stage $name" ;;
  esac
}

# test_traps: the whole table is long, and goes to a file; what is wrong in it is shown.
test_traps() {
  local log=$KUASAR_RESULTS/traps.log status=0
  "$KUASAR_ROOT/tools/dev" traps >"$log" 2>&1 || status=$?
  grep -E 'NO TEST|only skipped|FAILED| (failed|broken)$' "$log" || true
  tail -n 1 "$log"
  return "$status"
}

# test_install: the suite runs from any prefix, and nothing of it lands outside of that.
test_install() {
  local prefix start outside program status=0
  start=$(now_ms)
  prefix=$(mktemp -d /tmp/kuasar-install.XXXXXX)
  run_logged "$KUASAR_CACHE/log/install.log" \
    cmake --install "$KUASAR_BUILD/release" --prefix "$prefix/first" || return
  outside=$(grep -v "^$prefix/first/" "$KUASAR_BUILD/release/install_manifest.txt" || true)
  for program in $(sed -n 's/^ExecStart=\([^ ]*\).*/\1/p' "$prefix"/first/lib/systemd/system/*); do
    [[ -x $program ]] || outside+=" $program (of a unit)"
  done
  # Moved, it still finds its helpers.
  mv "$prefix/first" "$prefix/second"
  for program in runc-sandboxer wasm-sandboxer; do
    env -i "$prefix/second/bin/$program" --version >/dev/null || status=1
  done
  [[ -z $outside ]] || { printf 'not below the prefix: %s\n' "$outside"; status=1; }
  rm -rf "$prefix"
  print_step install "into a fresh prefix: $( ((status)) && printf FAILED || printf complete)" "$start"
  return "$status"
}

# test_preset PRESET: builds it and runs its unit, integration and e2e tests.
test_preset() {
  local preset=$1 suite
  if ! (build_preset "$preset"); then
    test_fail "build ($preset)"
    for suite in unit integration e2e; do
      test_fail "$suite ($preset): cannot run, the build failed"
    done
    return 0
  fi
  test_count 1 0 0
  test_suite "$preset" unit kuasar_unit_tests 120
  test_suite "$preset" integration kuasar_integration_tests 600
  # The e2e program itself is not under test: release's runs against each preset's daemon.
  test_suite "$preset" e2e kuasar_e2e 1500 release
}

# test_runtimes PRESET: what the OCI runtime has a part in, with those of .cache/runtimes.
test_runtimes() {
  local cases='[#lifecycle_test],[#exec_test],[#logs_test],[#runtime_test],[#userns_test]'
  cases+=',[#security_test],[#mounts_test]'
  [[ -x $KUASAR_BUILD/$1/test/kuasar_e2e ]] || return 0
  KUASAR_LAB_RUNTIME=$KUASAR_RUNTIMES/usr/sbin/runc \
    test_suite "$1" e2e-runc kuasar_e2e 300 "$1" --filenames-as-tags "$cases"
  KUASAR_LAB_RUNTIME=$KUASAR_RUNTIMES/usr/bin/crun KUASAR_LAB_HIDE_UNIFIED=1 \
    test_suite "$1" e2e-crun kuasar_e2e 300 "$1" --filenames-as-tags "$cases"
}

# test_suite PRESET SUITE BINARY SECONDS [BUILT [ARGUMENT...]]: one Catch2 binary, built with preset
# BUILT (else PRESET), in a scratch directory of its own, against the daemon of PRESET.
test_suite() {
  local preset=$1 suite=$2 limit=$4 built=${5:-$1} start status=0 counts failed
  local binary=$KUASAR_BUILD/$built/test/$3 base=$KUASAR_RESULTS/$preset-$suite
  local arguments=("${@:6}")
  start=$(now_ms)
  if [[ ! -x $binary ]]; then
    test_fail "$suite ($preset): ${binary#"$KUASAR_ROOT"/} does not exist"
    return 0
  fi
  lab_begin
  ASAN_OPTIONS=detect_leaks=1:log_path=$base.sanitizer \
    UBSAN_OPTIONS=print_stacktrace=1:log_path=$base.sanitizer \
    lab_run "$KUASAR_BUILD/$preset/bin" timeout -k 10 "$limit" \
    "$binary" "${arguments[@]}" --reporter console --reporter "junit::out=$base.junit.xml" \
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
  test_fail "${#reports[@]} sanitizer reports of ${1##*/}, the first:"
  head -n 30 "${reports[0]}"
  return 1
}

test_show_failures() {
  local base=$1 status=$2 limit=$3
  if ((status == 124 || status == 137)); then
    printf 'stopped after %s s in: %s\n' "$limit" "$(results_last_case "$base.xml")"
  fi
  results_failures "$base.xml"
  printf -- '--- the last lines of %s:\n' "${base#"$KUASAR_ROOT"/}.log"
  tail -n 60 "$base.log"
}

# test_fuzz: every libFuzzer target at once, each on a copy of its corpus.
test_fuzz() {
  local start binary name found=0 status jobs=()
  if ! (build_preset fuzz); then
    test_fail "build (fuzz)"
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
    test_fail "fuzz: there is no target build/fuzz/test/fuzz/fuzz_*"
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
      test_fail "fuzz: $name, see build/test-results/$name.log"
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
