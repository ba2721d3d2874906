"""Clones and fetches with dulwich; ../README.md has the command line."""

import argparse
import io
import sys

import dulwich.client
from dulwich import porcelain
from dulwich.client import get_transport_and_path
from dulwich.repo import Repo


def mirror(url, repo):
    """dulwich maps no refspecs when it clones, so all refs are taken as they were shown."""
    client, path = get_transport_and_path(url)
    shown = client.fetch(path.encode(), repo, determine_wants=missing(repo))
    refs = {n: o for n, o in shown.refs.items() if n.startswith(b"refs/") and not n.endswith(b"^{}") and o}
    for name in repo.refs.allkeys() - refs.keys() - {b"HEAD"}:
        del repo.refs[name]
    for name, oid in refs.items():
        repo.refs[name] = oid
    if head := shown.symrefs.get(b"HEAD"):
        repo.refs.set_symbolic_ref(b"HEAD", head)


def missing(repo):
    def wants(refs, depth=None):
        return sorted({o for n, o in refs.items() if o and not n.endswith(b"^{}") and o not in repo.object_store})

    return wants


def main():
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("clone", "mirror", "fetch"):
        command = commands.add_parser(name)
        if name != "fetch":
            command.add_argument("url")
        command.add_argument("dir")
        command.add_argument("--protocol", type=int)
        command.add_argument("--depth", type=int)
        command.add_argument("--unshallow", action="store_true")
    args = parser.parse_args()
    if args.protocol is not None:
        # Fetching takes no version, so it is the default that changes.
        dulwich.client.DEFAULT_GIT_PROTOCOL_VERSION_FETCH = args.protocol
    if args.command == "clone":
        porcelain.clone(args.url, args.dir, depth=args.depth, errstream=io.BytesIO())
    elif args.command == "mirror":
        repo = Repo.init_bare(args.dir, mkdir=True)
        config = repo.get_config()
        config.set((b"remote", b"origin"), b"url", args.url.encode())
        config.set((b"remote", b"origin"), b"mirror", True)
        config.write_to_path()
        mirror(args.url, repo)
    else:
        repo = Repo(args.dir)
        config = repo.get_config()
        if config.get_boolean((b"remote", b"origin"), b"mirror", False):
            mirror(config.get((b"remote", b"origin"), b"url").decode(), repo)
        else:
            how = {"depth": args.depth, "unshallow": args.unshallow, "prune": True}
            porcelain.fetch(repo, "origin", errstream=io.BytesIO(), outstream=io.StringIO(), **how)


if __name__ == "__main__":
    try:
        main()
    except Exception as error:
        sys.exit(f"dulwich: {type(error).__name__}: {error}")
