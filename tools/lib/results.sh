# shellcheck shell=bash
# Reading what the tests left in build/test-results. <preset>-<suite>.xml is Catch2's own XML (it
# has tags and counts test cases), <preset>-<suite>.junit.xml is for CI systems.

# results_cases FILE...: "result<TAB>name<TAB>tags<TAB>reason<TAB>failure" per test case; result is
# passed, failed, skipped, or broken for one that never ended (the binary died in it); reason is of
# the skip, failure the first assertion that failed.
results_cases() {
  awk -f "$KUASAR_LIB/results.awk" "$@"
}

# results_counts FILE STATUS: "passed failed skipped" of a run that ended with exit STATUS.
# A run that ended badly has at least one failure, also when it broke off before any test.
results_counts() {
  local passed=0 failed=0 skipped=0 result
  if [[ -s $1 ]]; then
    while IFS=$'\t' read -r result _; do
      case $result in
        passed) passed=$((passed + 1)) ;;
        skipped) skipped=$((skipped + 1)) ;;
        *) failed=$((failed + 1)) ;;
      esac
    done < <(results_cases "$1")
  fi
  # Catch2 ends with 4 when every test was skipped: that is no failure.
  if (($2 != 0 && failed == 0 && !($2 == 4 && passed == 0 && skipped > 0))); then failed=1; fi
  if ((passed + failed + skipped == 0)); then failed=1; fi
  printf '%d %d %d' "$passed" "$failed" "$skipped"
}

results_words() {
  local passed failed skipped
  read -r passed failed skipped <<<"$1"
  printf '%s passed, %s failed, %s skipped' "$passed" "$failed" "$skipped"
}

# results_failures FILE: for every failed test case its name, then its first failed assertion.
results_failures() {
  [[ -s $1 ]] || return 0
  results_cases "$1" | awk -F '\t' '$1 == "failed" || $1 == "broken" {
    printf "FAILED       %s%s\n", $2, $1 == "broken" ? " (the test binary died here)" : ""
    if ($5 != "") printf "             %s\n", substr($5, 1, 600) }'
}

# results_reasons FILE: one line per skipped test case, with its reason.
results_reasons() {
  [[ -s $1 ]] || return 0
  results_cases "$1" | awk -F '\t' '$1 == "skipped" {
    line = sprintf("skipped      %s: %s", $2, $4 == "" ? "no reason given" : $4)
    print substr(line, 1, 100) }'
}

# results_last_case FILE: the test case that ran last.
results_last_case() {
  [[ -s $1 ]] || return 0
  results_cases "$1" | tail -n 1 | cut -f 2
}

results_fuzz_words() {
  awk '/stat::number_of_executed_units/ { runs = $2 }
       /stat::peak_rss_mb/ { rss = $2 }
       END { printf "%d runs, %d MB", runs, rss }' "$1"
}
