# shellcheck shell=bash
# What the wasm kind is tested with: WasmEdge of Debian forky with the C library it needs, in
# .cache/wasmedge, Wasmtime of the Python registry's wheel in .cache/wasmtime, and modules built from test/wasm in .cache/modules, which are also an image.

readonly WASM_FORMAT=1
readonly WASM_MODULES_FORMAT=1
readonly WASM_PACKAGES=(libwasmedge0 wasmedge)
readonly WASM_PEER_PACKAGES=(crun libwasmedge0)
# A release may change its C API: worker/wasmtime.cc is run with this one.
readonly WASM_WASMTIME='wasmtime==50.*'

# wasm_prefix_provide REFRESH DIR LOG SUITE PROGRAM PACKAGE...: the packages in DIR with all that they
# need, where they are not there yet. Their own C library comes with them: PROGRAM, below DIR, has to
# run on that, through its loader, and nothing else does.
wasm_prefix_provide() {
  local refresh=$1 dir=$2 log=$KUASAR_CACHE/log/$3 suite=$4 program=$5 start wanted
  shift 5
  wanted=$(printf '%s\n' "format $WASM_FORMAT" "$@")
  if [[ -z $refresh ]] && prefix_stamp_is "$dir/.stamp" "$wanted"; then return 0; fi
  start=$(now_ms)
  prefix_download_closure "$log" "$suite" "$@"
  prefix_unpack "$(realpath -m "$dir")"
  # Debian's own directories are links in a system that is installed.
  "$(wasm_loader "$dir")" --library-path "$(wasm_library_path "$dir")" "$dir/$program" --version \
    >/dev/null || die "$program of $suite does not run here"
  prefix_write_stamp "$dir/.stamp" "$wanted"
  print_step wasm "$(grep "^have $1 " "$dir/.stamp" | cut -d ' ' -f 2-) in .cache/${dir##*/}" "$start"
}

wasm_engine_provide() {
  wasm_prefix_provide "$1" "$KUASAR_WASMEDGE" wasm.log forky usr/bin/wasmedge "${WASM_PACKAGES[@]}"
}

# wasm_peer_provide: trixie's crun, the last that runs modules (by WasmEdge), for the bench alone.
wasm_peer_provide() {
  wasm_prefix_provide '' "$KUASAR_WASM_PEER" wasm-peer.log trixie usr/bin/crun \
    "${WASM_PEER_PACKAGES[@]}"
}

# wasm_wasmtime_provide [REFRESH]: the wheel's library, which is Wasmtime with its C API. pip knows
# the registry of this machine; without it, or on another architecture, there is none, and tests say
# so.
wasm_wasmtime_provide() {
  local start wanted work log=$KUASAR_CACHE/log/wasmtime.log dir=$KUASAR_WASMTIME library
  wanted="want $WASM_WASMTIME"
  if [[ -z $1 && -f $dir/.stamp && $(<"$dir/.stamp") == "$wanted" ]]; then return 0; fi
  start=$(now_ms)
  work=$(mktemp -d)
  if ! /usr/bin/python3 -m pip --retries 1 --timeout 20 download --no-deps --only-binary :all: \
    --dest "$work" "$WASM_WASMTIME" >"$log" 2>&1 </dev/null; then
    rm -rf "$work"
    print_step wasm "no Wasmtime: pip cannot download its wheel, see .cache/log/wasmtime.log" "$start"
    return 0
  fi
  /usr/bin/python3 -m zipfile -e "$work"/*.whl "$work/wheel"
  library=$(find "$work/wheel" -name _libwasmtime.so | sed -n 1p)
  mkdir -p "$dir"
  rm -f "$dir/.stamp"
  install -m 0755 "$library" "$dir/libwasmtime.so" || die "the wheel of Wasmtime has no library"
  printf '%s\n' "$wanted" >"$dir/.stamp"
  print_step wasm "$(basename "$work"/*.whl | cut -d - -f 1-2) in .cache/wasmtime" "$start"
  rm -rf "$work"
}

# wasm_loader DIR, wasm_library_path DIR: of the C library in a prefix.
wasm_loader() {
  find "$(realpath -m "$1")/usr" -name 'ld-linux*.so.*' | sed -n 1p
}

wasm_library_path() {
  local libc
  libc=$(find "$(realpath -m "$1")/usr" -name libc.so.6 | sed -n 1p)
  printf '%s' "${libc%/*}"
}

# wasm_bytes FILE HEX...: a module of these bytes behind its header.
wasm_bytes() {
  local file=$1 hex
  shift
  hex="0061736d01000000$(printf '%s' "$@")"
  # shellcheck disable=SC2059 # the format is made of bytes
  printf "$(sed 's/../\\x&/g' <<<"$hex")" >"$file"
}

# wasm_hostile DIR: what an engine must refuse, or survive.
wasm_hostile() {
  local dir=$1 type=010401600000 func=03020100 start=070a01065f73746172740000
  local body=0a040102000b
  cp "$KUASAR_PREFIX/bin/busybox" "$dir/elf.wasm" 2>/dev/null ||
    cp "$KUASAR_PREFIX/usr/bin/busybox" "$dir/elf.wasm"
  head -c 3000 "$dir/tool.wasm" >"$dir/truncated.wasm"
  # An endless loop as the start function: it runs when the module is instantiated.
  wasm_bytes "$dir/endless.wasm" $type $func 080100 0a0901070003400c000b0b
  # 100,000,000 locals in one function, and a memory of 4 GiB from the beginning.
  wasm_bytes "$dir/locals.wasm" $type $func $start 0a0901070180c2d72f7f0b
  wasm_bytes "$dir/memory.wasm" $type $func 05050100808004 $start $body
  # Of 4,294,967,295 imports the first is missing.
  wasm_bytes "$dir/imports.wasm" 0205ffffffff0f
  # A component.
  printf '\0asm\x0d\0\x01\0' >"$dir/component.wasm"
  printf 'not a module\n' >"$dir/text.wasm"
}

wasm_compile() {
  local source name
  for source in "$KUASAR_ROOT"/test/wasm/*.c; do
    name=$(basename "$source" .c)
    # clang 14 makes code of tool.c with -O2 that prints nothing.
    clang-14 --target=wasm32-wasi -O1 -Wall -Werror -o "$1/$name.wasm" "$source" || return
  done
}

# wasm_modules_provide: the modules and the image with all of them, when a source has changed.
wasm_modules_provide() {
  local start wanted work dir=$KUASAR_MODULES
  wanted=$(printf 'format %s\n' "$WASM_MODULES_FORMAT" &&
    cat "$KUASAR_ROOT"/test/wasm/*.c "$KUASAR_LIB/wasm.sh" | sha256sum)
  if [[ -f $KUASAR_IMAGES/wasm.tar && -f $dir/.stamp && $(<"$dir/.stamp") == "$wanted" ]]; then
    return 0
  fi
  start=$(now_ms)
  mkdir -p "$dir"
  rm -f "$dir"/*.wasm
  run_logged "$KUASAR_CACHE/log/modules.log" wasm_compile "$dir" || die "a test module does not build"
  wasm_hostile "$dir"
  work=$(mktemp -d "$KUASAR_IMAGES/.work.XXXXXX")
  chmod 0755 "$work"
  mkdir -p "$work"/{etc,srv,dev}
  mkdir -m 1777 "$work/tmp"
  cp "$dir"/*.wasm "$work/"
  chmod 0755 "$work"/*.wasm
  ln -s ../../../../../../etc "$work/outside"
  printf 'kuasar-wasm\n' >"$work/etc/image-name"
  printf '%s\n' 'root:x:0:0:root:/root:' 'app:x:1000:1000:app:/srv:' >"$work/etc/passwd"
  printf '%s\n' 'root:x:0:' 'app:x:1000:' 'extra:x:2000:app' >"$work/etc/group"
  printf 'written into the image\n' >"$work/srv/README"
  images_pack "$work" docker.io/library/kuasar-wasm:1 "$KUASAR_IMAGES/wasm.tar" \
    "{\"Env\":[\"IMAGE=wasm\",\"GREETING=hello\"],\"Cmd\":[\"/hello.wasm\"],\"WorkingDir\":\"/srv\"}"
  rm -rf "$work"
  printf '%s\n' "$wanted" >"$dir/.stamp"
  print_step wasm "$(find "$dir" -name '*.wasm' | wc -l) modules in .cache/modules, and their image" \
    "$start"
}
