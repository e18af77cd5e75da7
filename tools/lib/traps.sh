# shellcheck shell=bash
# tools/dev traps: the numbered traps of containerd's contract and the tests that cover them.

# shellcheck source=tools/lib/results.sh
. "$KUASAR_LIB/results.sh"

readonly TRAPS_TABLE=$KUASAR_ROOT/tools/traps.tsv

traps_usage() {
  cat <<'TEXT'
usage: tools/dev traps

Prints for each trap T1-T32 the tests that cover it, with their result in the last `tools/dev test`
(test cases whose name or tags contain the T-number), or why there is none: tools/traps.tsv says so,
and only T13, T14b, T15 ("not offered") and T19b ("SKIPPED here") may have such a word. Exits 1 when
any other trap has no passing test, or a failing one.
TEXT
}

traps_main() {
  local start number title status cases bad=0 now=0 total=0
  case ${1:-} in
    -h | --help) traps_usage; return 0 ;;
    '') ;;
    *) die "traps: unknown option '$1'; tools/dev traps --help lists them" ;;
  esac
  start=$(now_ms)
  cases=$(traps_cases)
  [[ -n $cases ]] || die "no results yet: run tools/dev test"
  while IFS=$'\t' read -r number title status; do
    [[ $number == T[0-9]* ]] || continue
    [[ $number == *[a-z] ]] || total=$((total + 1))
    if [[ $status == now ]]; then
      now=$((now + 1))
      traps_print_covered "$number" "$title" "$cases" || bad=$((bad + 1))
    else
      printf '%-4s %-60.60s %.34s\n' "$number" "$title" "$status"
      traps_print_tests "$(traps_tests_of "$number" "$cases")"
      traps_excused "$number" "$status" || bad=$((bad + 1))
    fi
  done <"$TRAPS_TABLE"
  ((total == 32)) || { printf 'tools/traps.tsv has %d of 32 traps\n' "$total"; bad=$((bad + 1)); }
  print_step traps "$now of $total have tests; $bad findings" "$start"
  ((bad == 0))
}

# traps_excused NUMBER STATUS: whether the trap may do without a test. Prints why not.
traps_excused() {
  case $1:$2 in
    T13:not\ offered:\ ?* | T14b:not\ offered:\ ?* | T15:not\ offered:\ ?*) return 0 ;;
    T19b:SKIPPED\ here:\ ?*) return 0 ;;
  esac
  printf '       may not do without a test (tools/traps.tsv)\n'
  return 1
}

# traps_cases: "result TAB suite TAB name TAB tags" of the last test run, every preset and suite.
traps_cases() {
  local file
  for file in "$KUASAR_RESULTS"/*.xml; do
    [[ -s $file && $file != *.junit.xml ]] || continue
    results_cases "$file" | awk -F '\t' -v suite="$(basename "$file" .xml)" \
      'BEGIN { OFS = "\t" } { print $1, suite, $2, $3 }'
  done
}

# traps_print_covered NUMBER TITLE CASES: fails without a passing test or with a failing one.
traps_print_covered() {
  local number=$1 found passed failed
  found=$(traps_tests_of "$number" "$3")
  passed=$(grep -c '^passed' <<<"$found" || true)
  failed=$(grep -cE '^(failed|broken)' <<<"$found" || true)
  printf '%-4s %-60.60s %s\n' "$number" "$2" "$(traps_verdict "$found" "$passed" "$failed")"
  traps_print_tests "$found"
  ((passed > 0 && failed == 0))
}

# traps_tests_of NUMBER CASES: the lines of CASES whose name or tags have the number as a word: T1
# is not in T16.
traps_tests_of() {
  awk -F '\t' -v want="$1" '
    { text = " " $3 " " $4 " " }
    match(text, "[^A-Za-z0-9]" want "[^A-Za-z0-9]")' <<<"$2"
}

traps_print_tests() {
  [[ -z $1 ]] || awk -F '\t' '{
    # The same test in two presets is one line.
    suite = $2; sub(/^[a-z]+-/, "", suite)
    key = suite ": " $3
    if (!(key in seen)) { order[++n] = key }
    seen[key] = seen[key] (seen[key] == "" ? "" : ", ") $1
  } END { for (i = 1; i <= n; i++) printf "       %-82.82s %s\n", order[i], seen[order[i]] }' \
    <<<"$1"
}

traps_verdict() {
  if [[ -z $1 ]]; then
    printf 'NO TEST'
  elif (($3 > 0)); then
    printf '%d passed, %d FAILED' "$2" "$3"
  elif (($2 == 0)); then
    printf 'only skipped'
  else
    printf '%d passed' "$2"
  fi
}
