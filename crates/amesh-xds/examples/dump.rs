//! Connects to a control plane, or reads a directory, and prints what would be published, one line a resource.
//!
//! ```text
//! dump [OPTIONS] SERVER...      SERVER: host:port, [address]:port, unix:/path or file:/path
//!   --sotw                      state of the world instead of incremental
//!   --id ID                     node id, instead of the environment's
//!   --meta NAME=VALUE           node metadata; may repeat
//!   --roots FILE                TLS, with these root certificates
//!   --name NAME                 name that the server's certificate must have
//!   --token FILE                bearer token
//!   --snapshot FILE             keep last good there
//!   --values                    print the values as well
//! ```
//!
//! A line `status` on the standard input prints the status, the end of the input ends it.

use amesh_xds::engine::{self, Command, Config, Engine, Level, Log, PublishError, Publisher, Server, Source, Tls};
use amesh_xds::node::{self, Overrides};
use amesh_xds::store::{Batch, Value};
use std::error::Error;
use std::io::{BufRead, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Instant;

struct Printer {
    start: Instant,
    values: bool,
}

impl amesh_xds::health::Vitals for Printer {}

impl Publisher for Printer {
    fn publish(&mut self, batch: &Batch) -> Result<(), PublishError> {
        println!(
            "# {:.3} s: {} put, {} removed",
            self.start.elapsed().as_secs_f64(),
            batch.put.len(),
            batch.remove.len()
        );
        for item in &batch.put {
            print!("put {:?} {} {}", item.kind, item.name, item.version);
            match &item.value {
                _ if !self.values => println!(),
                Value::Listener(v) => println!(" {v:?}"),
                Value::RouteTable(v) => println!(" {v:?}"),
                Value::Cluster(v) => println!(" {v:?}"),
                Value::EndpointSet(v) => println!(" {v:?}"),
                Value::ListenerIndex(v) => println!(" {v:?}"),
            }
        }
        for (kind, name) in &batch.remove {
            println!("remove {kind:?} {name}");
        }
        Ok(())
    }
}

struct Stderr;

impl Log for Stderr {
    fn log(&self, level: Level, text: &str) {
        eprintln!("[{level:?}] {text}");
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut config = Config::default();
    let mut overrides = Overrides::default();
    let (mut tls, mut name, mut values, mut servers) = (None, None, false, Vec::new());
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or_else(|| format!("{arg} needs a value"));
        match arg.as_str() {
            "--sotw" => config.protocol = engine::Protocol::Sotw,
            "--values" => values = true,
            "--id" => overrides.id = Some(value()?),
            "--meta" => {
                let pair = value()?;
                let (k, v) = pair.split_once('=').ok_or("--meta NAME=VALUE")?;
                overrides.metadata.push((k.to_owned(), v.to_owned()));
            }
            "--roots" => tls = Some(value()?.into()),
            "--name" => name = Some(value()?),
            "--token" => config.token_file = Some(value()?.into()),
            "--snapshot" => config.snapshot = Some(value()?.into()),
            _ => servers.push(arg),
        }
    }
    for server in servers {
        config.sources.push(match server.strip_prefix("file:") {
            Some(path) => Source::File(path.into()),
            None => Source::Grpc(Server {
                target: server.parse()?,
                tls: tls.clone().map(|roots| Tls { roots, server_name: name.clone(), client: None }),
            }),
        });
    }
    config.node = node::from_environment(&overrides)?;

    let mut engine = Engine::new(config, Printer { start: Instant::now(), values }, Stderr);
    match engine.load() {
        Ok(loaded) => eprintln!("{loaded}"),
        Err(e) => eprintln!("{e}"),
    }
    let (sender, commands) = crossbeam_channel::unbounded();
    let (mut wake, woken) = UnixStream::pair()?;
    woken.set_nonblocking(true)?;
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if line == "status" {
                let (reply, answer) = crossbeam_channel::bounded(1);
                if sender.send(Command::Status(reply)).is_err() || wake.write_all(&[1]).is_err() {
                    return;
                }
                if let Ok(json) = answer.recv() {
                    println!("{json}");
                }
            }
        }
        drop(sender);
        // The engine may have ended by itself.
        let _ = wake.write_all(&[1]);
    });
    Ok(engine::runtime(|| {}, || {})?.block_on(engine.run(&commands, woken.as_fd()))?)
}
