# shellcheck shell=bash
# Which files belong to the project.

# source_files ROOT: every file of the project below ROOT, relative to it: what git tracks or
# would track; outside of git (an exported tree) everything but build trees and caches.
source_files() {
  local root=$1 file
  if [[ -e $root/.git ]] && git -C "$root" rev-parse --git-dir >/dev/null 2>&1; then
    # A file that is deleted but not yet committed is still in git's list.
    git -C "$root" ls-files --cached --others --exclude-standard |
      while IFS= read -r file; do
        if [[ -f $root/$file ]]; then printf '%s\n' "$file"; fi
      done
  else
    (cd "$root" && find . \( -path ./build -o -path ./.cache -o -path ./.git \) -prune \
      -o -type f -printf '%P\n')
  fi | sort -u
}

# cxx_files ROOT: the C++ files among them.
cxx_files() {
  source_files "$1" | grep -E '\.(cc|h)$' || true
}
