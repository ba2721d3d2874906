#!/usr/bin/env bash
# A local MinIO to try packmirror with: minio-local.sh [start|stop]. Builds MinIO the first time, which takes some
# minutes. What it prints is for a shell: eval "$(infra/minio-local.sh)"
#
# PACKMIRROR_MINIO_DIR (data; by default in the parts' folder) and PACKMIRROR_MINIO_PORT (9000) say where.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=infra/parts/lib.sh
. "$here/parts/lib.sh"

dir=${PACKMIRROR_MINIO_DIR:-$parts/minio-local}
case ${1-start} in
start)
	"$here/parts/install.sh" minio >&2
	"$here/parts/minio.sh" start "$dir" "${PACKMIRROR_MINIO_PORT:-9000}"
	sed 's/^/export /' "$dir/env"
	cat <<-END
	# With these set:
	#   packmirror serve --primary https://git.example.com --store s3://$s3_bucket --cache-dir /tmp/packmirror --listen 127.0.0.1:8080
	# To end it:
	#   ${BASH_SOURCE[0]} stop
	END
	;;
stop) "$here/parts/minio.sh" stop "$dir" ;;
*) die "usage: ${0##*/} [start|stop]" ;;
esac
