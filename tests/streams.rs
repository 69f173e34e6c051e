//! Streams of bytes and datagrams between applications.
#![allow(
    clippy::disallowed_methods,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "real nodes and threads run against the real clock; tests panic and print, in their helpers too"
)]
#![cfg(feature = "ca")]

#[path = "support/cluster.rs"]
mod support;

use std::{
    io::{ErrorKind, Read, Write},
    thread,
    time::{Duration, Instant},
};

use nodosum::{
    App, DatagramError, Node, NodeId, RequestError, SendErrorKind, Stream, transport::Config,
};
use support::{Lab, PATIENCE, eventually, full_mesh};

const SECOND: Duration = Duration::from_secs(1);

struct Pair {
    nodes: Vec<Node>,
    here: App,
    there: App,
}

impl Pair {
    fn new(cluster: &str) -> Self {
        let nodes = Lab::new(cluster).start(2);
        Self::of(nodes)
    }

    fn of(nodes: Vec<Node>) -> Self {
        let here = nodes[0].register("bytes").unwrap();
        let there = nodes[1].register("bytes").unwrap();
        Self { nodes, here, there }
    }

    fn to(&self) -> &NodeId {
        self.nodes[1].id()
    }

    /// Both ends of a stream that `n1` has opened and said `hello` on.
    fn open(&self) -> (Stream, Stream) {
        let mut opened = self.here.open_stream(self.to(), 10 * SECOND).unwrap();
        opened.set_read_timeout(Some(PATIENCE));
        opened.set_write_timeout(Some(PATIENCE));
        opened.write_all(b"hello").unwrap();
        let mut accepted = self.there.streams().recv_timeout(PATIENCE).unwrap();
        accepted.set_read_timeout(Some(PATIENCE));
        accepted.set_write_timeout(Some(PATIENCE));
        assert_eq!(accepted.peer(), self.nodes[0].id());
        let mut hello = [0; 5];
        accepted.read_exact(&mut hello).unwrap();
        assert_eq!(&hello, b"hello");
        (opened, accepted)
    }

    /// The same, where streams that were given up may wait before it, so many that it is refused.
    fn open_after_others(&self) -> (Stream, Stream) {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            let mut opened = self.here.open_stream(self.to(), 10 * SECOND).unwrap();
            opened.set_read_timeout(Some(PATIENCE));
            // Refused before or after it was written.
            let _ = opened.write_all(b"hello");
            while let Ok(mut accepted) = self.there.streams().recv_timeout(SECOND) {
                accepted.set_read_timeout(Some(PATIENCE));
                let mut hello = [0; 5];
                if accepted.read_exact(&mut hello).is_ok() && &hello == b"hello" {
                    return (opened, accepted);
                }
            }
            assert!(
                opened.write_all(b"?").is_err(),
                "neither offered nor refused"
            );
        }
        panic!("no stream was taken in time");
    }

    fn shut_down(self) {
        for node in &self.nodes {
            let report = node.shutdown(10 * SECOND);
            assert!(report.threads_stuck.is_empty(), "{report:?}");
        }
    }
}

/// Bytes that tell where they are.
fn pattern(from: u64, buffer: &mut [u8]) {
    for (offset, byte) in buffer.iter_mut().enumerate() {
        let at = from + offset as u64;
        *byte = (at ^ (at >> 8) ^ (at >> 16)) as u8;
    }
}

fn write_pattern(mut stream: &Stream, bytes: u64) {
    let mut buffer = vec![0; 100_000];
    let mut at = 0;
    while at < bytes {
        let count = buffer.len().min(usize::try_from(bytes - at).unwrap());
        pattern(at, &mut buffer[..count]);
        stream.write_all(&buffer[..count]).unwrap();
        at += count as u64;
    }
    stream.finish();
}

/// Reads to the end, with a pause now and then, and returns how much there was.
fn read_pattern(mut stream: &Stream, pause_every: u64) -> u64 {
    let mut buffer = vec![0; 70_000];
    let mut expected = vec![0; 70_000];
    let (mut at, mut pause_at) = (0, pause_every);
    loop {
        let count = stream.read(&mut buffer).unwrap();
        if count == 0 {
            return at;
        }
        pattern(at, &mut expected[..count]);
        assert!(buffer[..count] == expected[..count], "at {at}");
        at += count as u64;
        if at >= pause_at {
            pause_at += pause_every;
            // A reader that does something else for a while; nothing is waited for.
            thread::sleep(Duration::from_millis(5));
        }
    }
}

#[test]
fn bytes_arrive_in_order_in_both_directions_and_each_half_ends_for_itself() {
    let pair = Pair::new("both-ways");
    let (opened, accepted) = pair.open();
    let bytes = 20_000_000;
    thread::scope(|scope| {
        scope.spawn(|| write_pattern(&opened, bytes));
        scope.spawn(|| write_pattern(&accepted, bytes));
        let one = scope.spawn(|| read_pattern(&opened, 4_000_000));
        assert_eq!(read_pattern(&accepted, 4_000_000), bytes);
        assert_eq!(one.join().unwrap(), bytes);
    });
    let late = (&opened).write(b"x").unwrap_err();
    assert_eq!(late.kind(), ErrorKind::BrokenPipe, "{late}");
    assert_eq!((&accepted).read(&mut [0; 1]).unwrap(), 0, "the end stays");
    pair.shut_down();
}

#[test]
fn much_passes_through_small_windows_whole_although_the_reader_pauses() {
    let lab = Lab::new("windows");
    let config = || Config {
        stream_window: 64 << 10,
        connection_window: 32 << 20,
        ..Config::default()
    };
    let first = lab.builder("n1").transport(config()).start().unwrap();
    let second = lab
        .builder("n2")
        .seed(first.quic_addr().to_string())
        .transport(config())
        .start()
        .unwrap();
    let nodes = vec![first, second];
    full_mesh(&nodes, PATIENCE);
    let pair = Pair::of(nodes);
    let opened = pair.here.open_stream(pair.to(), 10 * SECOND).unwrap();
    let bytes = 64 << 20;
    thread::scope(|scope| {
        scope.spawn(|| write_pattern(&opened, bytes));
        let accepted = pair.there.streams().recv_timeout(PATIENCE).unwrap();
        assert_eq!(read_pattern(&accepted, 1 << 20), bytes);
    });
    pair.shut_down();
}

#[test]
fn a_stream_that_nobody_reads_stops_its_writer_and_nobody_else() {
    let pair = Pair::new("stalled");
    pair.there
        .on_request(1, |request| Ok(request.payload.clone()))
        .unwrap();
    // As many as a peer may have open, each with more than its window takes.
    let mut stalled = Vec::new();
    for _ in 0..64 {
        let mut stream = pair.here.open_stream(pair.to(), 10 * SECOND).unwrap();
        stream.write_all(&[7; 600_000]).unwrap();
        stalled.push(stream);
    }
    let accepted: Vec<Stream> = stalled
        .iter()
        .map(|_| pair.there.streams().recv_timeout(PATIENCE).unwrap())
        .collect();
    let writer = &stalled[0];
    writer.set_write_timeout(Some(SECOND / 4));
    let error = loop {
        if let Err(error) = (&mut &*writer).write(&[7; 100_000]) {
            break error;
        }
    };
    assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
    for _ in 0..50 {
        let answer = pair.here.request(pair.to(), "still there?", 10 * SECOND);
        assert_eq!(answer.as_deref(), Ok("still there?".as_bytes()));
    }
    // One more than may be open is refused to its opener's face.
    let (peer, max) = (pair.to().clone(), 64);
    assert_eq!(
        pair.here.open_stream(pair.to(), SECOND).unwrap_err(),
        SendErrorKind::TooManyStreams { peer, max }
    );
    // The other end may open as many of its own.
    let back = pair.there.open_stream(pair.nodes[0].id(), SECOND).unwrap();
    (&back).write_all(b"x").unwrap();
    let back_here = pair.here.streams().recv_timeout(PATIENCE).unwrap();
    drop((back, back_here));
    // What is read goes on.
    let mut rest = accepted.into_iter();
    let mut first = rest.next().unwrap();
    first.read_exact(&mut vec![0; 600_000]).unwrap();
    drop((rest, stalled));
    pair.shut_down();
}

#[test]
fn a_reader_that_reads_little_at_a_time_keeps_its_writer_going() {
    let pair = Pair::new("sips");
    let (opened, mut accepted) = pair.open();
    let bytes = 3 << 20;
    let begun = Instant::now();
    thread::scope(|scope| {
        scope.spawn(|| write_pattern(&opened, bytes));
        let (mut at, mut sip, mut expected) = (0, [0; 1_000], [0; 1_000]);
        loop {
            let count = accepted.read(&mut sip).unwrap();
            if count == 0 {
                break;
            }
            pattern(at, &mut expected[..count]);
            assert!(sip[..count] == expected[..count], "at {at}");
            at += count as u64;
        }
        assert_eq!(at, bytes);
    });
    // With windows that are granted again only when something else is sent, it takes half a minute.
    assert!(begun.elapsed() < PATIENCE / 4, "{:?}", begun.elapsed());
    pair.shut_down();
}

/// A thread in a loop keeps reading the socket for all. When it stays away, somebody else has to.
#[test]
fn who_stops_in_the_middle_of_a_loop_holds_nobody_up() {
    let pair = Pair::new("loop");
    for app in [&pair.here, &pair.there] {
        app.on_request_inline(|request| Ok(request.payload.clone()));
    }
    let (opened, accepted) = pair.open();
    thread::scope(|scope| {
        let writer = scope.spawn(|| write_all_until_reset(&opened));
        let mut buffer = vec![0; 64 * 1_024];
        for round in 0..40_u8 {
            for _ in 0..20 {
                assert!((&accepted).read(&mut buffer).unwrap() > 0);
            }
            // The reader is here, and so nobody reads; the writer waits for room by now or will.
            let ask = |app: &App, to: &Node| app.request(to.id(), [round], PATIENCE).unwrap();
            assert_eq!(ask(&pair.here, &pair.nodes[1]), [round]);
            assert_eq!(ask(&pair.there, &pair.nodes[0]), [round]);
            pair.here.send(pair.to(), [round], PATIENCE).unwrap();
            let message = pair.there.messages().recv_timeout(PATIENCE).unwrap();
            assert_eq!(message.payload, [round]);
        }
        // A writer that waits for room is told that there will be none.
        opened.reset(7);
        writer.join().unwrap();
    });
    pair.shut_down();
}

fn write_all_until_reset(mut stream: &Stream) {
    let buffer = vec![0; 64 * 1_024];
    let end = loop {
        if let Err(error) = stream.write(&buffer) {
            break error;
        }
    };
    assert_eq!(end.kind(), ErrorKind::BrokenPipe, "{end}");
}

#[test]
fn streams_that_are_given_up_at_once_cost_nothing_for_good() {
    let pair = Pair::new("given-up");
    // More than QUIC grants; each is over before the peer can have read what it is for.
    for round in 0..1_200_u64 {
        let mut stream = pair.here.open_stream(pair.to(), 10 * SECOND).unwrap();
        match round % 3 {
            0 => stream.reset(round),
            1 => {
                // It may be refused before: the peer has too many that nobody took yet.
                let _ = stream.write_all(b"never mind");
                stream.reset(round);
            }
            _ => {}
        }
        drop(stream);
        while pair.there.streams().try_recv().is_ok() {}
    }
    let (opened, accepted) = pair.open_after_others();
    (&accepted).write_all(b"yes").unwrap();
    let mut yes = [0; 3];
    (&opened).read_exact(&mut yes).unwrap();
    drop((opened, accepted));
    eventually("no stream is left", || {
        while pair.there.streams().try_recv().is_ok() {}
        let connections = pair.nodes.iter().flat_map(Node::connections);
        connections.into_iter().all(|info| info.streams <= 4)
    });
    pair.shut_down();
}

#[test]
fn a_stop_by_another_thread_ends_a_read_and_both_of_two_readers_are_told() {
    let pair = Pair::new("two-readers");
    let (opened, accepted) = pair.open();
    thread::scope(|scope| {
        let readers = [0, 1].map(|_| scope.spawn(|| (&opened).read(&mut [0; 1]).unwrap()));
        // Whichever waits already; the other finds the stream stopped.
        opened.stop();
        for reader in readers {
            assert_eq!(reader.join().unwrap(), 0);
        }
    });
    drop(accepted);
    pair.shut_down();
}

#[test]
fn an_application_that_is_dropped_refuses_the_streams_that_wait_for_it() {
    let pair = Pair::new("dropped");
    let gone = pair.nodes[1].register("gone").unwrap();
    let here = pair.nodes[0].register("gone").unwrap();
    let waiting: Vec<Stream> = (0..8)
        .map(|_| {
            let mut stream = here.open_stream(pair.to(), 10 * SECOND).unwrap();
            stream.set_read_timeout(Some(PATIENCE));
            stream.write_all(b"hello").unwrap();
            stream
        })
        .collect();
    eventually("all wait", || gone.streams().len() == 8);
    drop(gone);
    for mut stream in waiting {
        let error = stream.read(&mut [0; 1]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
    }
    let (opened, accepted) = pair.open();
    drop((opened, accepted));
    pair.shut_down();
}

#[test]
fn a_read_that_takes_too_long_fails_and_has_done_nothing() {
    let pair = Pair::new("late");
    let (mut opened, mut accepted) = pair.open();
    opened.set_read_timeout(Some(Duration::from_millis(50)));
    let begun = Instant::now();
    let error = opened.read(&mut [0; 10]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
    assert!(begun.elapsed() >= Duration::from_millis(50));
    accepted.write_all(b"now").unwrap();
    opened.set_read_timeout(Some(PATIENCE));
    let mut now = [0; 3];
    opened.read_exact(&mut now).unwrap();
    assert_eq!(&now, b"now");
    pair.shut_down();
}

#[test]
fn a_reset_reaches_the_reader_and_a_stop_the_writer() {
    let pair = Pair::new("resets");
    let (opened, accepted) = pair.open();
    opened.reset(7);
    let error = (&accepted).read(&mut [0; 1]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
    assert!(error.to_string().contains("code 7"), "{error}");
    // The other half goes on.
    (&accepted).write_all(b"yes").unwrap();
    let mut yes = [0; 3];
    (&opened).read_exact(&mut yes).unwrap();
    // Until its reader has had enough.
    opened.stop();
    eventually("the writer is told", || {
        let written = (&accepted).write(b"more");
        written.is_err_and(|error| error.kind() == ErrorKind::BrokenPipe)
    });
    pair.shut_down();
}

#[test]
fn what_was_written_before_a_drop_arrives_and_clones_keep_a_stream_open() {
    let pair = Pair::new("drops");
    let (opened, mut accepted) = pair.open();
    let mut clone = opened.try_clone();
    drop(opened);
    clone.write_all(b"last words").unwrap();
    drop(clone);
    let mut words = String::new();
    accepted.read_to_string(&mut words).unwrap();
    assert_eq!(words, "last words");
    pair.shut_down();
}

#[test]
fn a_stream_to_an_application_that_is_not_there_is_reset() {
    let pair = Pair::new("nobody");
    let lonely = pair.nodes[0].register("lonely").unwrap();
    let mut stream = lonely.open_stream(pair.to(), 10 * SECOND).unwrap();
    stream.set_read_timeout(Some(PATIENCE));
    stream.write_all(b"anybody?").unwrap();
    let error = stream.read(&mut [0; 1]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
    let stranger = "n9".parse().unwrap();
    let error = lonely.open_stream(&stranger, SECOND).unwrap_err();
    assert_eq!(error, SendErrorKind::NotConnected(stranger));
    pair.shut_down();
}

#[test]
fn many_streams_one_after_the_other_leave_nothing_behind() {
    let pair = Pair::new("many");
    let there = pair.there.clone();
    let echo = thread::spawn(move || {
        // Until the node is shut down.
        for mut stream in there.streams() {
            let mut text = Vec::new();
            stream.read_to_end(&mut text).unwrap();
            stream.write_all(&text).unwrap();
        }
    });
    // More than a peer may have open at a time, and more than QUIC grants without new credit.
    for round in 0..1_500_u32 {
        let mut stream = pair.here.open_stream(pair.to(), 10 * SECOND).unwrap();
        stream.set_read_timeout(Some(PATIENCE));
        stream.write_all(&round.to_be_bytes()).unwrap();
        stream.finish();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        assert_eq!(answer, round.to_be_bytes());
    }
    eventually("no stream is left", || {
        let connections = pair.nodes.iter().flat_map(Node::connections);
        // Control, and no more than what membership has open for a moment.
        connections.into_iter().all(|info| info.streams <= 4)
    });
    pair.shut_down();
    echo.join().unwrap();
}

#[test]
fn a_stream_ends_with_its_connection() {
    let pair = Pair::new("ends");
    let (opened, _accepted) = pair.open();
    thread::scope(|scope| {
        let reader = scope.spawn(|| (&opened).read(&mut [0; 1]).unwrap_err());
        pair.nodes[1].abort();
        let error = reader.join().unwrap();
        assert_eq!(error.kind(), ErrorKind::ConnectionAborted, "{error}");
    });
    let error = (&opened).write(b"x").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionAborted, "{error}");
    pair.nodes[0].shutdown(10 * SECOND);
}

#[test]
fn datagrams_arrive_or_are_counted_and_too_large_ones_are_refused() {
    let pair = Pair::new("datagrams");
    let max = pair.here.max_datagram_bytes(pair.to()).unwrap();
    assert!((1_000..1_200).contains(&max), "{max}");
    let whole = vec![3; max];
    pair.here.send_datagram(pair.to(), &whole).unwrap();
    let got = pair.there.datagrams().recv_timeout(PATIENCE).unwrap();
    assert_eq!(&got.from, pair.nodes[0].id());
    assert_eq!(got.payload, whole);
    let bytes = max + 1;
    assert_eq!(
        pair.here.send_datagram(pair.to(), &vec![3; bytes]),
        Err(DatagramError::TooLarge { bytes, max })
    );
    let stranger: NodeId = "n9".parse().unwrap();
    assert_eq!(
        pair.here.send_datagram(&stranger, b"x"),
        Err(DatagramError::NotConnected(stranger))
    );
    // Nobody takes them: the queue fills up, the rest is counted, and requests go on.
    pair.there
        .on_request(1, |request| Ok(request.payload.clone()))
        .unwrap();
    eventually("more came than wait", || {
        for number in 0..100_u32 {
            match pair.here.send_datagram(pair.to(), &number.to_be_bytes()) {
                Ok(()) | Err(DatagramError::Full(_)) => {}
                Err(error) => panic!("{error}"),
            }
        }
        pair.there.dropped_datagrams() > 0
    });
    assert_eq!(pair.there.datagrams().len(), 1_024);
    let answer = pair.here.request(pair.to(), "still there?", 10 * SECOND);
    assert_eq!(answer, Ok::<_, RequestError>(b"still there?".to_vec()));
    pair.shut_down();
}
