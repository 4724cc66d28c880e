#!/usr/bin/env bash
# A headless browser (Debian's) and Playwright beside it, in an environment of its own: what tests/browser needs. `make browser-test`.
set -euo pipefail
cd "$(dirname "$0")/../.."
if ! command -v chromium-headless-shell > /dev/null; then
    if ! command -v apt-get > /dev/null; then
        echo "no apt here, and no chromium-headless-shell: tests/browser is skipped"
        exit 0
    fi
    apt-get update -qq
    apt-get install --yes --quiet --no-install-recommends chromium-headless-shell fonts-noto-core
fi
if ! .venv-browser/bin/python -c "import playwright" 2> /dev/null; then
    "${PYTHON:-python3.11}" -m venv .venv-browser
    .venv-browser/bin/python -m pip install --quiet --disable-pip-version-check --no-input \
        --no-deps --require-hashes -r requirements/browser.txt
fi
