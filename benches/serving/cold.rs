//! A node with an empty cache and an S3 server: how long an answer takes, beside 16 parallel ranged reads of all that the bucket has.
//!
//! The server is a MinIO of the bench's own. With a delay, a relay in between holds everything back by half of it in each direction, for the
//! node and for the reads alike.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::{StreamExt, TryStreamExt, stream};
use object_store::aws::AmazonS3Builder;
use object_store::{ObjectStore, ObjectStoreExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;

use crate::Result;
use crate::client::ask;
use crate::requests::Row;
use crate::servers::{START, SYNC, Subject, mirrored, passed_on, procs, until};
use crate::shell::{Server, free_port};

/// How many reads there are at a time.
const READS: usize = 16;
/// And how much each of them asks for.
const RANGE: u64 = 8 << 20;
/// What a relay reads at once, and how many pieces it may hold back.
const PIECE: usize = 64 << 10;
const PIECES: usize = 4096;
/// How many rounds there are at least.
const LEAST: usize = 5;

/// A MinIO, and what programs need to reach it. It ends with it.
struct Minio {
    port: u16,
    env: Vec<(String, String)>,
    _server: Server,
}

impl Minio {
    fn start(run: &Path) -> Result<Self> {
        let (dir, port) = (run.join("minio"), free_port()?);
        let mut command = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("infra/parts/minio.sh"));
        command.arg("start").arg(&dir).arg(port.to_string());
        // The script ends, and what it has started stays in its process group.
        let server = Server::start("minio", command, run)?;
        let end = Instant::now() + START;
        let text = loop {
            match std::fs::read_to_string(dir.join("env")) {
                Ok(text) if text.contains("S3_BUCKET=") => break text,
                _ if Instant::now() > end => return Err(format!("no MinIO:\n{}", server.log_end()).into()),
                _ => std::thread::sleep(Duration::from_millis(50)),
            }
        };
        let pairs = text.lines().filter_map(|line| line.split_once('='));
        let env = pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
        Ok(Self { port, env, _server: server })
    }

    fn value(&self, name: &str) -> Result<&str> {
        let found = self.env.iter().find(|(key, _)| key == name);
        Ok(&found.ok_or_else(|| format!("MinIO's settings have no {name}"))?.1)
    }

    /// A client that has no connection yet, through a relay.
    fn client(&self, port: u16) -> Result<Arc<dyn ObjectStore>> {
        packmirror::tls::provide();
        let builder = AmazonS3Builder::new()
            .with_endpoint(format!("http://127.0.0.1:{port}"))
            .with_allow_http(true)
            .with_bucket_name(self.value("S3_BUCKET")?)
            .with_region(self.value("AWS_REGION")?)
            .with_access_key_id(self.value("AWS_ACCESS_KEY_ID")?)
            .with_secret_access_key(self.value("AWS_SECRET_ACCESS_KEY")?);
        Ok(Arc::new(builder.build()?))
    }
}

/// Starts a node with an empty cache, or one that another has left.
fn node(
    (name, cache): (&str, &Path),
    binary: &Path,
    primary: &Subject,
    run: &Path,
    (minio, port): (&Minio, u16),
) -> Result<Subject> {
    let port_file = run.join(format!("{name}.port"));
    let mut command = Command::new(binary);
    command.args(["serve", "--listen", "127.0.0.1:0", "--compare-every", "1h"]);
    command.arg("--primary").arg(format!("http://{}", primary.address)).arg("--port-file").arg(&port_file);
    command.arg("--store").arg(format!("s3://{}/cold", minio.value("S3_BUCKET")?));
    command.arg("--cache-dir").arg(cache);
    command.envs(minio.env.iter().map(|(key, value)| (key, value)));
    command.env("AWS_ENDPOINT_URL", format!("http://127.0.0.1:{port}"));
    let mut servers = vec![Server::start(name, command, run)?];
    until(START, "packmirror", &mut servers, || Ok(port_file.exists()))?;
    let address = format!("127.0.0.1:{}", std::fs::read_to_string(&port_file)?.trim());
    std::fs::remove_file(&port_file)?;
    let procs = procs(&servers, 1, None)?;
    Ok(Subject { name: "cold", address, procs, mirror: true, servers })
}

/// Prints a table of `rows`, with a delay of each of `delays` between the store and those who read from it.
pub fn table(
    rows: &[&Row],
    primary: &Subject,
    binary: &Path,
    run: &Path,
    delays: &[u64],
    rounds: usize,
) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let minio = Minio::start(run)?;
    let first = run.join("cache-first");
    let mut maker = node(("first", &first), binary, primary, run, (&minio, minio.port))?;
    let Some(repository) = rows.first().map(|row| row.repository) else { return Ok(()) };
    eprintln!("waiting for the mirror of {}", repository.name);
    let address = maker.address.clone();
    until(SYNC, "the mirror", &mut maker.servers, || mirrored(&address, repository, "strict"))?;
    drop(maker);
    println!(
        "| row | delay ms | bytes in the bucket | {READS} reads ms | first ms | total ms | total/reads | CPU ms | passed on |"
    );
    println!("|---|{}", "--:|".repeat(8));
    for delay in delays {
        let port = match delay {
            0 => minio.port,
            delay => relay(&runtime, minio.port, Duration::from_millis(*delay) / 2)?,
        };
        for row in rows {
            let request = row.requests(false).into_iter().next_back().ok_or("a row without a request")?;
            let (mut reads, mut firsts, mut totals, mut cpus) = (vec![], vec![], vec![], vec![]);
            let (mut bytes, mut passed) = (0, 0.0);
            for round in 0..rounds.max(LEAST) {
                eprintln!("{}, {delay} ms, round {}", row.name, round + 1);
                let store = minio.client(port)?;
                let begun = Instant::now();
                bytes = runtime.block_on(read_all(&store))?;
                reads.push(begun.elapsed().as_secs_f64() * 1000.0);
                let cache = run.join("cache-cold");
                let server = node(("cold", &cache), binary, primary, run, (&minio, port))?;
                let cpu = server.procs.cpu()?;
                let answer = ask(&server.address, &request, None)?;
                cpus.push((server.procs.cpu()? - cpu) * 1000.0);
                firsts.push(answer.first.as_secs_f64() * 1000.0);
                totals.push(answer.total.as_secs_f64() * 1000.0);
                passed += passed_on(&server.address)?;
                drop(server);
                std::fs::remove_dir_all(&cache)?;
            }
            let [reads, first, total, cpu] = [reads, firsts, totals, cpus].map(median);
            println!(
                "| {} | {delay} | {bytes} | {reads:.1} | {first:.1} | {total:.1} | {:.2} | {cpu:.0} | {passed} |",
                row.name,
                total / reads,
            );
        }
    }
    Ok(())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Reads all blobs, so many ranges at a time; says how many bytes those are.
async fn read_all(store: &Arc<dyn ObjectStore>) -> Result<u64> {
    let blobs: Vec<_> = store.list(Some(&"cold/blobs".into())).try_collect().await?;
    let ranges = blobs.iter().flat_map(|blob| {
        let starts = (0..blob.size).step_by(RANGE as usize);
        starts.map(|start| (&blob.location, start..(start + RANGE).min(blob.size)))
    });
    let ranges: Vec<_> = ranges.collect();
    let reads = stream::iter(ranges).map(|(key, range)| store.get_range(key, range));
    let read = reads.buffer_unordered(READS).try_fold(0, async |sum, bytes| Ok(sum + bytes.len() as u64));
    Ok(read.await?)
}

/// Passes connections on to a port, each piece after a while; gives the port where it listens. It ends with `runtime`.
fn relay(runtime: &Runtime, to: u16, delay: Duration) -> Result<u16> {
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0"))?;
    let port = listener.local_addr()?.port();
    runtime.spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            tokio::spawn(async move {
                // As long as it takes until a connection is there.
                tokio::time::sleep(delay * 2).await;
                let server = TcpStream::connect(("127.0.0.1", to)).await?;
                client.set_nodelay(true)?;
                server.set_nodelay(true)?;
                let ((from_client, to_client), (from_server, to_server)) =
                    (client.into_split(), server.into_split());
                tokio::try_join!(later(from_client, to_server, delay), later(from_server, to_client, delay))
            });
        }
    });
    Ok(port)
}

/// Passes bytes on, each after `delay`, however many are under way.
async fn later(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, delay: Duration) -> std::io::Result<()> {
    let (send, mut pieces) = mpsc::channel::<(tokio::time::Instant, Vec<u8>)>(PIECES);
    let reading = async move {
        loop {
            let mut piece = Vec::with_capacity(PIECE);
            if from.read_buf(&mut piece).await? == 0 {
                return Ok(());
            }
            if send.send((tokio::time::Instant::now() + delay, piece)).await.is_err() {
                return Ok(());
            }
        }
    };
    let writing = async move {
        while let Some((due, piece)) = pieces.recv().await {
            tokio::time::sleep_until(due).await;
            to.write_all(&piece).await?;
        }
        to.shutdown().await
    };
    tokio::try_join!(reading, writing).map(drop)
}
