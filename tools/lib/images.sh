# shellcheck shell=bash
# The lab's container images: OCI image-layout tars made from Debian's busybox, byte-identical on
# every run, so that no registry is ever asked. `ctr -n k8s.io images import FILE` takes them.

readonly IMAGES_FORMAT=1
readonly IMAGES_STAMP=$KUASAR_IMAGES/.stamp

# images_base_tree DIR: busybox with the libraries it needs, its applets as links, two users.
images_base_tree() {
  local dir=$1 busybox=$KUASAR_PREFIX/bin/busybox lib applet
  [[ -x $busybox ]] || busybox=$KUASAR_PREFIX/usr/bin/busybox
  mkdir -p "$dir"/{bin,etc,dev,proc,sys,root,run,srv,var/empty,home/app}
  mkdir -m 1777 "$dir/tmp"
  cp "$busybox" "$dir/bin/busybox"
  while read -r lib; do
    mkdir -p "$dir${lib%/*}"
    cp -L "$lib" "$dir$lib"
  done < <(ldd "$busybox" | grep -oE '/[^ ]+')
  while read -r applet; do
    [[ $applet == busybox ]] || ln -s busybox "$dir/bin/$applet"
  done < <("$busybox" --list)
  printf '%s\n' 'root:x:0:0:root:/root:/bin/sh' 'app:x:1000:1000:app:/home/app:/bin/sh' \
    'nobody:x:65534:65534:nobody:/var/empty:/bin/false' >"$dir/etc/passwd"
  printf '%s\n' 'root:x:0:' 'app:x:1000:' 'extra:x:2000:app' 'nogroup:x:65534:' >"$dir/etc/group"
}

# images_blob LAYOUT FILE: moves FILE to its place among the blobs; prints "digest size".
images_blob() {
  local digest size
  digest=$(sha256sum "$2" | cut -d ' ' -f 1)
  size=$(stat -c %s "$2")
  mkdir -p "$1/blobs/sha256"
  mv "$2" "$1/blobs/sha256/$digest"
  printf 'sha256:%s %s' "$digest" "$size"
}

images_tar() {
  tar --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner --format=gnu -C "$1" -cf "$2" .
}

# images_pack TREE NAME FILE CONFIG: TREE as the only layer of image NAME, with CONFIG (JSON) as
# its runtime configuration, into FILE.
images_pack() {
  local tree=$1 name=$2 file=$3 config=$4
  local layout diff layer image manifest arch
  layout=$(mktemp -d "$KUASAR_IMAGES/.layout.XXXXXX")
  arch=$(dpkg --print-architecture)
  images_tar "$tree" "$layout/layer"
  diff=$(sha256sum "$layout/layer" | cut -d ' ' -f 1)
  gzip -n -6 "$layout/layer"
  layer=$(images_blob "$layout" "$layout/layer.gz")

  printf '{"created":"1970-01-01T00:00:00Z","architecture":"%s","os":"linux","config":%s,%s}' \
    "$arch" "$config" "\"rootfs\":{\"type\":\"layers\",\"diff_ids\":[\"sha256:$diff\"]}" \
    >"$layout/config"
  image=$(images_blob "$layout" "$layout/config")

  local media=application/vnd.oci.image
  {
    printf '{"schemaVersion":2,"mediaType":"%s.manifest.v1+json",' $media
    printf '"config":{"mediaType":"%s.config.v1+json","digest":"%s","size":%s},' \
      $media "${image% *}" "${image#* }"
    printf '"layers":[{"mediaType":"%s.layer.v1.tar+gzip","digest":"%s","size":%s}]}' \
      $media "${layer% *}" "${layer#* }"
  } >"$layout/manifest"
  manifest=$(images_blob "$layout" "$layout/manifest")

  printf '{"imageLayoutVersion":"1.0.0"}' >"$layout/oci-layout"
  {
    printf '{"schemaVersion":2,"manifests":[{"mediaType":"%s.manifest.v1+json",' $media
    printf '"digest":"%s","size":%s,"annotations":{"io.containerd.image.name":"%s",' \
      "${manifest% *}" "${manifest#* }" "$name"
    printf '"org.opencontainers.image.ref.name":"%s"},' "${name##*:}"
    printf '"platform":{"architecture":"%s","os":"linux"}}]}' "$arch"
  } >"$layout/index.json"
  images_tar "$layout" "$file.new"
  mv "$file.new" "$file"
  rm -rf "$layout"
}

images_make() {
  local work path=/bin:/usr/bin:/sbin:/usr/sbin
  work=$(mktemp -d "$KUASAR_IMAGES/.work.XXXXXX")
  mkdir "$work/busybox" "$work/tools"
  chmod 0755 "$work/busybox" "$work/tools"
  images_base_tree "$work/busybox"
  printf 'kuasar-busybox\n' >"$work/busybox/etc/image-name"
  images_pack "$work/busybox" docker.io/library/kuasar-busybox:1 "$KUASAR_IMAGES/busybox.tar" \
    "{\"Env\":[\"PATH=$path\",\"IMAGE=busybox\"],\"Cmd\":[\"sh\"],\"WorkingDir\":\"/\"}"

  images_base_tree "$work/tools"
  printf 'kuasar-tools\n' >"$work/tools/etc/image-name"
  printf 'written into the image\n' >"$work/tools/srv/README"
  images_pack "$work/tools" docker.io/library/kuasar-tools:1 "$KUASAR_IMAGES/tools.tar" \
    "{\"Env\":[\"PATH=$path\",\"IMAGE=tools\",\"GREETING=hello\"],$(
    )\"Cmd\":[\"cat\",\"/etc/image-name\"],\"WorkingDir\":\"/srv\"}"
  rm -rf "$work"
}

# images_make_pause: the sandbox image of containerd's own shim, which the labs compare with.
images_make_pause() {
  local tree
  tree=$(mktemp -d "$KUASAR_IMAGES/.work.XXXXXX")
  chmod 0755 "$tree"
  run_logged "$KUASAR_CACHE/log/pause.log" \
    cc -Os -static -s -o "$tree/pause" "$KUASAR_ROOT/test/support/tools/pause.c" ||
    die "the pause image cannot be compiled"
  images_pack "$tree" docker.io/library/kuasar-pause:1 "$KUASAR_IMAGES/pause.tar" \
    '{"Entrypoint":["/pause"],"WorkingDir":"/"}'
  rm -rf "$tree"
}

# images_provide: makes the images unless they are of this format and of this busybox already.
images_provide() {
  local start wanted
  wanted="format $IMAGES_FORMAT $(grep '^have busybox ' "$PREFIX_STAMP")"
  if [[ -f $IMAGES_STAMP && ! -f $KUASAR_IMAGES/pause.tar ]]; then images_make_pause; fi
  if [[ -f $IMAGES_STAMP && -f $KUASAR_IMAGES/busybox.tar && -f $KUASAR_IMAGES/tools.tar ]] &&
    [[ $(<"$IMAGES_STAMP") == "$wanted" ]]; then
    return 0
  fi
  start=$(now_ms)
  rm -rf "$KUASAR_IMAGES"
  mkdir -p "$KUASAR_IMAGES"
  images_make
  images_make_pause
  printf '%s\n' "$wanted" >"$IMAGES_STAMP"
  print_step images "made busybox.tar, tools.tar and pause.tar in .cache/images" "$start"
}
