# Catch2's XML report to lines: result TAB name TAB tags TAB reason of a skip TAB first failure.

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

function trimmed(line) {
  sub(/^[ \t]+/, "", line)
  sub(/[ \t]+$/, "", line)
  return plain(line)
}

function flush_case() {
  if (name != "") printf "%s\t%s\t%s\t%s\t%s\n", result, name, tags, reason, failure
  name = ""
}

FNR == 1 { flush_case() }

/<TestCase / {
  flush_case()
  name = attribute($0, "name")
  tags = attribute($0, "tags")
  result = "broken"
  reason = failure = info = ""
  in_skip = in_info = in_failure = 0
}

/<Skip / { in_skip = 1; next }
/<\/Skip>/ { in_skip = 0 }
in_skip && reason == "" { reason = trimmed($0) }

# What INFO and CAPTURE say stands before the assertion that it belongs to.
/<Info / { in_info = 1; next }
/<\/Info>/ { in_info = 0; next }
in_info { info = info "; " trimmed($0) }

/<(Failure|Exception|FatalErrorCondition) / || /<Expression success="false"/ {
  if (failure == "") {
    in_failure = 1
    where = attribute($0, "filename")
    sub(/^.*\/test\//, "test/", where)
    failure = where ":" attribute($0, "line") ":"
  }
  next
}
/<\/(Failure|Exception|FatalErrorCondition|Expression)>/ {
  if (in_failure) failure = failure info
  in_failure = 0
  info = ""
}
in_failure && /<Expanded>/ { failure = failure ", which is" }
in_failure && !/^ *<\/?[A-Z]/ { failure = failure " " trimmed($0) }

/<OverallResult / {
  if (attribute($0, "success") != "true") result = "failed"
  else if (attribute($0, "skips") + 0 > 0) result = "skipped"
  else result = "passed"
}

END { flush_case() }
