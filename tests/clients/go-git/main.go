// Clones and fetches with go-git; ../README.md has the command line.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"

	git "github.com/go-git/go-git/v5"
	"github.com/go-git/go-git/v5/plumbing"
)

// What git itself sends for `--unshallow`.
const whole = 0x7fffffff

func main() {
	if len(os.Args) < 3 {
		os.Exit(2)
	}
	command, places := os.Args[1], map[string]int{"clone": 2, "mirror": 2, "fetch": 1}[os.Args[1]]
	if places == 0 || len(os.Args) < 2+places {
		os.Exit(2)
	}
	flags := flag.NewFlagSet(command, flag.ExitOnError)
	branch := flags.String("branch", "", "")
	depth := flags.Int("depth", 0, "")
	unshallow := flags.Bool("unshallow", false, "")
	_ = flags.Parse(os.Args[2+places:])
	if *unshallow {
		*depth = whole
	}
	var err error
	if command == "fetch" {
		err = fetch(os.Args[2], *depth)
	} else {
		options := &git.CloneOptions{URL: os.Args[2], Mirror: command == "mirror", Depth: *depth}
		if *branch != "" {
			options.ReferenceName = plumbing.NewBranchReferenceName(*branch)
			options.SingleBranch = true
		}
		_, err = git.PlainClone(os.Args[3], options.Mirror, options)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "go-git:", err)
		os.Exit(1)
	}
}

func fetch(dir string, depth int) error {
	repo, err := git.PlainOpen(dir)
	if err != nil {
		return err
	}
	err = repo.Fetch(&git.FetchOptions{RemoteName: "origin", Depth: depth, Prune: true, Force: true})
	if errors.Is(err, git.NoErrAlreadyUpToDate) {
		return nil
	}
	return err
}
