#!/usr/bin/env bash
# A versitygw of one's own, a second S3 server: versitygw.sh start DIR PORT | stop DIR. Listens on loopback, keeps its
# data in DIR/data, has the bucket `packmirror`, and leaves in DIR/env what packmirror needs to reach it.
set -euo pipefail
# shellcheck source=infra/parts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

arguments "$@"
if [ "$action" = stop ]; then
	halt
	exit
fi
versitygw=$(binary versitygw)
mkdir -p "$dir/data"
launch /health env ROOT_ACCESS_KEY="$s3_user" ROOT_SECRET_KEY="$s3_password" \
	"$versitygw" --port "127.0.0.1:$port" --health /health posix "$dir/data"
s3_ready
