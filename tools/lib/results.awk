# Catch2's XML report to lines: result TAB name TAB tags TAB reason of a skip.

function attribute(line, key, value) {
  if (!match(line, " " key "=\"[^\"]*\"")) return ""
  value = substr(line, RSTART + length(key) + 3, RLENGTH - length(key) - 4)
  return plain(value)
}

function plain(text) {
  gsub(/&lt;/, "<", text)
  gsub(/&gt;/, ">", text)
  gsub(/&quot;/, "\"", text)
  gsub(/&apos;/, "'", text)
  gsub(/&amp;/, "\\&", text)
  gsub(/[\t\n]/, " ", text)
  return text
}

function flush_case() {
  if (name != "") printf "%s\t%s\t%s\t%s\n", result, name, tags, reason
  name = ""
}

FNR == 1 { flush_case() }

/<TestCase / {
  flush_case()
  name = attribute($0, "name")
  tags = attribute($0, "tags")
  result = "broken"
  reason = ""
}

/<Skip / { in_skip = 1; next }
/<\/Skip>/ { in_skip = 0 }
in_skip {
  text = $0
  sub(/^[ \t]+/, "", text)
  sub(/[ \t]+$/, "", text)
  if (reason == "") reason = plain(text)
}

/<OverallResult / {
  if (attribute($0, "success") != "true") result = "failed"
  else if (attribute($0, "skips") + 0 > 0) result = "skipped"
  else result = "passed"
}

END { flush_case() }
