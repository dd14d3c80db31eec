#!/usr/bin/env bash
# Installs what the tests run against: Debian's packages, and the examples' npm packages.
# A tool that is missing and cannot be installed is an error, never a skipped test.
set -euo pipefail
cd "$(dirname "$0")/.."
# Where Debian has nginx.
PATH=$PATH:/usr/sbin

# command:package
needed=(
  redis-server:redis-server
  redis-cli:redis-tools
  redis-benchmark:redis-tools
  promtool:prometheus
  prometheus:prometheus
  chromium:chromium
  chromedriver:chromium-driver
  firefox-esr:firefox-esr
  WebKitWebDriver:webkit2gtk-driver
  Xvfb:xvfb
  curl:curl
  ip:iproute2
  tc:iproute2
  nft:nftables
  prlimit:util-linux
  openssl:openssl
  slowhttptest:slowhttptest
  nginx:nginx
  haproxy:haproxy
  caddy:caddy
  shellcheck:shellcheck
  strace:strace
  systemd-analyze:systemd
  cc:gcc
  pgrep:procps
)

for component in fmt clippy; do
  if ! cargo "$component" --version >/dev/null 2>&1; then
    echo "cargo $component is missing: rustup component add rustfmt clippy" >&2
    exit 1
  fi
done

missing=()
for pair in "${needed[@]}"; do
  command -v "${pair%%:*}" >/dev/null || missing+=("${pair##*:}")
done
/usr/bin/python3 -c 'import redis' 2>/dev/null || missing+=(python3-redis)
[[ -e /usr/lib/nginx/modules/ngx_stream_module.so ]] || missing+=(libnginx-mod-stream)
command -v npm >/dev/null || missing+=(nodejs npm)
python3 -c 'import ensurepip' 2>/dev/null || missing+=(python3-venv)

if ((${#missing[@]})); then
  install=(apt-get install --yes --no-install-recommends "${missing[@]}")
  if ((EUID == 0)); then
    as_root=()
  elif sudo --non-interactive true 2>/dev/null; then
    as_root=(sudo)
  else
    echo "the tests need packages that only root may install:" >&2
    echo "  sudo apt-get update && sudo ${install[*]}" >&2
    exit 1
  fi
  "${as_root[@]}" apt-get update --quiet
  # The packaged servers are not to be started: the tests start their own.
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 "${install[@]}"
fi

npm ci --prefix examples/node --no-audit --no-fund --silent

# What checks the deployment files comes from PyPI, pinned, into a folder of its own.
tools=target/deploy-tools
if ! cmp --silent tests/deploy/requirements.txt "$tools/installed.txt"; then
  rm -rf "$tools"
  python3 -m venv "$tools"
  "$tools/bin/pip" install --quiet --disable-pip-version-check --requirement tests/deploy/requirements.txt
  cp tests/deploy/requirements.txt "$tools/installed.txt"
fi
