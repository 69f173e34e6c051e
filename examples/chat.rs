//! A chat among several terminals: one channel for members and connections, one for messages.
//!
//! Make certificates with `nodosum tls` (see the README), then, each in a terminal of its own:
//!
//! ```sh
//! cargo run --example chat -- n1 127.0.0.1:7946
//! cargo run --example chat -- n2 127.0.0.1:7956 127.0.0.1:7946
//! ```
//!
//! The first argument is the directory with ca.pem, node.pem and node.key, the second the address to
//! bind, the others are seeds.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "it talks to a person"
)]

use std::{error::Error, io, time::Duration};

use crossbeam_channel::select;
use nodosum::{EventKind, Identity, Node};

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(tls_dir), Some(bind)) = (args.next(), args.next()) else {
        return Err("usage: chat TLS-DIR IP:PORT [SEED]...".into());
    };
    let builder = Node::builder(Identity::from_dir(tls_dir)?)
        .bind(bind.parse()?)
        .seeds(args);
    // Before the start, or who is connected first would be missed.
    let events = builder.events();
    let node = builder.start()?;
    let chat = node.register("chat")?;
    let lines = stdin_lines()?;
    println!(
        "{} at {}; type, or end with Ctrl-D",
        node.id(),
        node.quic_addr()
    );

    loop {
        select! {
            recv(lines) -> line => {
                // The channel ends with the input.
                let Ok(line) = line else { break };
                for (peer, error) in chat.broadcast(line.as_bytes(), Duration::from_secs(1)).failed {
                    eprintln!("not sent to {peer}: {error}");
                }
            }
            recv(chat.messages()) -> message => {
                let message = message?;
                println!("{}: {}", message.from, String::from_utf8_lossy(&message.payload));
            }
            recv(events.receiver()) -> event => match event?.kind {
                EventKind::Connected { node } => println!("* {node} is here"),
                EventKind::Disconnected { node, reason, .. } => println!("* {node} is gone: {reason}"),
                _ => {}
            },
        }
    }
    node.shutdown(Duration::from_secs(5));
    Ok(())
}

/// Standard input, line by line, on a channel.
fn stdin_lines() -> io::Result<crossbeam_channel::Receiver<String>> {
    let (sender, lines) = crossbeam_channel::bounded(16);
    std::thread::Builder::new()
        .name("stdin".into())
        .spawn(move || {
            for line in io::stdin().lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        })?;
    Ok(lines)
}
