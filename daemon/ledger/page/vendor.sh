#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Writes the files of static/ that come from npm packages, as they are in the
# packages that package-lock.json has the hashes of. Needs npm.
set -eu
cd "$(dirname "$0")"
command -v npm >/dev/null || { echo "vendor.sh: npm is missing; install the package npm"; exit 1; }

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp package.json package-lock.json .npmrc "$work"
(cd "$work" && npm ci --silent --no-progress)

from=$work/node_modules
cp "$from/preact/dist/preact.mjs" static/preact.mjs
cp "$from/preact/LICENSE" static/preact.LICENSE.txt
cp "$from/@dagrejs/dagre/dist/dagre.esm.js" static/dagre.mjs
cp "$from/@dagrejs/dagre/dist/dagre.esm.js.LEGAL.txt" static/dagre.LICENSE.txt
chmod 644 static/preact.* static/dagre.*
