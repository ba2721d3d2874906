#!/usr/bin/env bash
# A MinIO of one's own: minio.sh start DIR PORT | stop DIR. Listens on loopback, keeps its data in DIR/data, has the
# bucket `packmirror`, and leaves in DIR/env what packmirror needs to reach it.
set -euo pipefail
# shellcheck source=infra/parts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

arguments "$@"
if [ "$action" = stop ]; then
	halt
	exit
fi
minio=$(binary minio)
launch /minio/health/ready env MINIO_ROOT_USER="$s3_user" MINIO_ROOT_PASSWORD="$s3_password" MINIO_BROWSER=off \
	"$minio" server "$dir/data" --address "127.0.0.1:$port"
s3_ready
