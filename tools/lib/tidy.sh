# shellcheck shell=bash
# tools/dev tidy: clang-tidy over the project's own .cc files.

# shellcheck source=tools/lib/sources.sh
. "$KUASAR_LIB/sources.sh"

tidy_usage() {
  cat <<'TEXT'
usage: tools/dev tidy [FILE.cc...]

Runs clang-tidy 14 with .clang-tidy over FILEs, or over every .cc file, using the compile commands
of build/dev (`tools/dev build` makes them). Exits 1 when there are findings. Slow: minutes.
TEXT
}

tidy_main() {
  local files=() start found
  if wants_help "$@"; then
    tidy_usage
    return 0
  fi
  command -v clang-tidy-14 >/dev/null || die "clang-tidy-14 is missing: run tools/dev setup"
  [[ -f $KUASAR_BUILD/dev/compile_commands.json ]] ||
    die "build/dev/compile_commands.json is missing: run tools/dev build"
  start=$(now_ms)
  cd "$KUASAR_ROOT" || return
  files=("$@")
  if ((${#files[@]} == 0)); then
    # Only what the preset compiles can be looked at (fuzz targets belong to another one).
    mapfile -t files < <(cxx_files "$KUASAR_ROOT" | grep '\.cc$' | while read -r file; do
      ! grep -qF "/$file\"" "$KUASAR_BUILD/dev/compile_commands.json" || printf '%s\n' "$file"
    done)
  fi
  # g++'s flags are in the compile commands; clang must not stop at one that it does not know.
  found=$(printf '%s\n' "${files[@]}" |
    xargs -r -d '\n' -P "$(nproc)" -n 1 clang-tidy-14 -p "$KUASAR_BUILD/dev" --quiet \
      --extra-arg=-Wno-unknown-warning-option 2>/dev/null |
    grep -E '^/.*: (warning|error): ' | sed "s|^$KUASAR_ROOT/||" | sort -u) || true
  if [[ -n $found ]]; then
    printf '%s\n' "$found"
    print_step tidy "${#files[@]} files, $(wc -l <<<"$found") findings" "$start"
    return 1
  fi
  print_step tidy "${#files[@]} files, no findings" "$start"
}
