# shellcheck shell=bash
# tools/dev traps: the numbered traps of containerd's contract and the tests that cover them.

# shellcheck source=tools/lib/results.sh
. "$KUASAR_LIB/results.sh"

readonly TRAPS_TABLE=$KUASAR_ROOT/tools/traps.tsv

traps_usage() {
  cat <<'TEXT'
usage: tools/dev traps

Prints for each trap T1-T32 the tests that cover it, with their result in the last `tools/dev test`
(test cases whose name or tags contain the T-number), or "later:" and the subject of the issue that
brings it. tools/traps.tsv says which. Exits 1 when a trap of today has no passing test, or a
failing one.
TEXT
}

traps_main() {
  local start number title status cases bad=0 now=0 total=0
  if wants_help "$@"; then
    traps_usage
    return 0
  fi
  start=$(now_ms)
  cases=$(traps_cases)
  while IFS=$'\t' read -r number title status; do
    [[ $number == T[0-9]* ]] || continue
    total=$((total + 1))
    if [[ $status == now ]]; then
      now=$((now + 1))
      traps_print_covered "$number" "$title" "$cases" || bad=$((bad + 1))
    else
      printf '%-4s %-60.60s %.34s\n' "$number" "$title" "$status"
    fi
  done <"$TRAPS_TABLE"
  ((total == 32)) || { printf 'tools/traps.tsv has %d of 32 traps\n' "$total"; bad=$((bad + 1)); }
  print_step traps "$now of $total belong to what exists; $bad of those without a passing test" \
    "$start"
  ((bad == 0))
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
  found=$(awk -F '\t' -v want="$number" '
    # The number as a word: T1 is not in T16.
    { text = " " $3 " " $4 " " }
    match(text, "[^A-Za-z0-9]" want "[^A-Za-z0-9]")' <<<"$3")
  passed=$(grep -c '^passed' <<<"$found" || true)
  failed=$(grep -cE '^(failed|broken)' <<<"$found" || true)
  printf '%-4s %-60.60s %s\n' "$number" "$2" "$(traps_verdict "$found" "$passed" "$failed")"
  [[ -z $found ]] || awk -F '\t' '{
    # The same test in two presets is one line.
    suite = $2; sub(/^[a-z]+-/, "", suite)
    key = suite ": " $3
    if (!(key in seen)) { order[++n] = key }
    seen[key] = seen[key] (seen[key] == "" ? "" : ", ") $1
  } END { for (i = 1; i <= n; i++) printf "       %-82.82s %s\n", order[i], seen[order[i]] }' \
    <<<"$found"
  ((passed > 0 && failed == 0))
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
