// Clones and fetches with isomorphic-git; ../README.md has the command line.
import fs from 'node:fs'
import { parseArgs } from 'node:util'
import git from 'isomorphic-git'
import http from 'isomorphic-git/http/node'

const text = { type: 'string' }
const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: { branch: text, depth: text, deepen: text, protocol: text, unshallow: { type: 'boolean' } },
})
const [command, ...places] = positionals

const options = { fs, http }
if (values.depth) options.depth = Number(values.depth)
if (values.deepen) Object.assign(options, { depth: Number(values.deepen), relative: true })
// What git itself sends for `--unshallow`.
if (values.unshallow) options.depth = 0x7fffffff
if (values.branch) Object.assign(options, { ref: values.branch, singleBranch: true })

try {
  if (values.protocol) process.exit(2)
  if (command === 'clone') {
    await git.clone({ ...options, url: places[0], dir: places[1] })
  } else if (command === 'fetch') {
    await git.fetch({ ...options, dir: places[0], remote: 'origin', tags: true, prune: true })
  } else {
    process.exit(2) // It leaves out whatever is neither branch nor tag.
  }
} catch (error) {
  console.error(`isomorphic-git: ${error.code}: ${error.message}`)
  process.exit(1)
}
