# shellcheck shell=bash
# OpenTelemetry's own Python description of OTLP, for a receiver that the tests run. Optional: they say
# SKIPPED without it.

readonly KUASAR_OTLP=$KUASAR_CACHE/otlp
readonly OTLP_PACKAGES=(opentelemetry-proto grpcio)

# otlp_provide [REFRESH]: .cache/otlp, for PYTHONPATH, by pip from the index that it is configured for.
otlp_provide() {
  local start wanted stamp=$KUASAR_OTLP/.stamp
  wanted="$(/usr/bin/python3 --version 2>&1) ${OTLP_PACKAGES[*]}"
  if [[ -z ${1:-} && -f $stamp && $(<"$stamp") == "$wanted" ]]; then return 0; fi
  start=$(now_ms)
  rm -rf "$KUASAR_OTLP"
  if run_logged "$KUASAR_CACHE/log/otlp.log" /usr/bin/python3 -m pip install -q --no-input --retries 1 \
    --timeout 20 --only-binary :all: --disable-pip-version-check --root-user-action ignore \
    --target "$KUASAR_OTLP" "${OTLP_PACKAGES[@]}" >/dev/null 2>&1; then
    printf '%s\n' "$wanted" >"$stamp"
    print_step otlp "${OTLP_PACKAGES[*]} in .cache/otlp" "$start"
  else
    rm -rf "$KUASAR_OTLP"
    print_step otlp "not to be had (.cache/log/otlp.log): its test will be skipped" "$start"
  fi
}
