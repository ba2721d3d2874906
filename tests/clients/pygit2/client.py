"""Clones and fetches with libgit2, by pygit2; ../README.md has the command line."""

import argparse
import sys

import pygit2
from pygit2.enums import FetchPrune

# GIT_FETCH_DEPTH_UNSHALLOW
WHOLE = 2147483647


def main():
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("clone", "mirror", "fetch"):
        command = commands.add_parser(name)
        if name != "fetch":
            command.add_argument("url")
        command.add_argument("dir")
        command.add_argument("--branch")
        command.add_argument("--depth", type=int, default=0)
        command.add_argument("--unshallow", action="store_true")
    args = parser.parse_args()
    if args.command == "clone" and not args.branch:
        pygit2.clone_repository(args.url, args.dir, depth=args.depth)
        return
    if args.command != "fetch":
        # libgit2 takes one branch, or all refs, only into what is there already.
        repo = pygit2.init_repository(args.dir, bare=args.command == "mirror")
        one = f"+refs/heads/{args.branch}:refs/remotes/origin/{args.branch}"
        repo.remotes.create("origin", args.url, one if args.branch else "+refs/*:refs/*")
    else:
        repo = pygit2.Repository(args.dir)
    depth = WHOLE if args.unshallow else args.depth
    repo.remotes["origin"].fetch(prune=FetchPrune.PRUNE, depth=depth)


if __name__ == "__main__":
    try:
        main()
    except Exception as error:
        sys.exit(f"libgit2: {type(error).__name__}: {error}")
