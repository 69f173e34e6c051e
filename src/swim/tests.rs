//! What transcripts cannot show: limits, counts and answers of a single core.

use super::{
    probe::{MAX_CHECKS, MAX_RELAYS, Purpose},
    probing::REFUTATION_MEMORY,
    records::{MAX_INCARNATION, MAX_RECORD_STEP, OUTBIDS_OF_A_RIVAL},
    *,
};
use crate::record::{SignedRecord, encode_addr};

const NOBODY: &str = "127.0.0.1:9";

fn id(name: &str) -> NodeId {
    name.parse().unwrap()
}

fn signed(record: Record) -> Arc<VerifiedRecord> {
    let payload = Arc::from(record.encode());
    let signature = Arc::from(vec![0; 72]);
    Arc::new(VerifiedRecord {
        record,
        signed: SignedRecord { payload, signature },
    })
}

fn record(name: &str, incarnation: u64, boot: u8) -> Record {
    let port = 1_000 + name.bytes().map(u16::from).sum::<u16>();
    let addr = SocketAddr::from(([127, 0, 0, 1], port));
    assert_eq!(encode_addr(addr).len(), 6);
    Record {
        cluster: "test".parse().unwrap(),
        node: id(name),
        incarnation,
        boot: BootId([boot; 16]),
        quic_addr: addr,
        gossip_addr: addr,
        tags: BTreeMap::new(),
        left: false,
        protocol: (1, 1),
        version: "0".into(),
        certificate: [0; 32],
    }
}

/// A core named `me` and a clock that the test moves.
struct Bench {
    core: Swim,
    now: Instant,
}

impl Bench {
    #[expect(
        clippy::disallowed_methods,
        reason = "a starting point in time; nothing is measured"
    )]
    fn new(config: Config, members: &[&str]) -> Self {
        let now = Instant::now();
        let mut core = Swim::new(config, signed(record("me", 1, 1)), 7, now);
        for name in members {
            core.handle_record(now, signed(record(name, 1, 1)));
        }
        let mut bench = Self { core, now };
        bench.events();
        bench.sent();
        bench
    }

    fn events(&mut self) -> Vec<Event> {
        std::iter::from_fn(|| self.core.poll_event()).collect()
    }

    fn actions(&mut self) -> Vec<Action> {
        std::iter::from_fn(|| self.core.poll_action()).collect()
    }

    fn sent(&mut self) -> Vec<(NodeId, Message)> {
        std::iter::from_fn(|| self.core.poll_transmit())
            .map(|transmit| {
                (
                    transmit.to,
                    Message::decode(&id("me"), &transmit.payload).unwrap(),
                )
            })
            .collect()
    }

    fn receive(&mut self, from: &str, body: Body) {
        self.tell(from, body, Vec::new());
    }

    fn tell(&mut self, from: &str, body: Body, statements: Vec<Statement>) {
        let message = Message {
            body,
            statements,
            records: Vec::new(),
            events: Vec::new(),
        };
        let addr = NOBODY.parse().unwrap();
        self.core
            .handle_message(self.now, &id(from), addr, message, Vec::new());
    }

    /// Moves to the next timer and fires it.
    fn tick(&mut self) {
        self.now = self.core.poll_timeout().unwrap();
        self.core.handle_timeout(self.now);
    }

    /// Ticks until a message of the wanted kind is sent; returns all of those.
    fn tick_until(&mut self, wanted: fn(&Body) -> bool) -> Vec<(NodeId, Body)> {
        for _ in 0..1_000 {
            self.tick();
            let sent = self
                .sent()
                .into_iter()
                .map(|(to, message)| (to, message.body));
            let sent: Vec<_> = sent.filter(|(_, body)| wanted(body)).collect();
            if !sent.is_empty() {
                return sent;
            }
        }
        panic!("nothing of the kind was sent");
    }

    fn signs(&mut self) -> Record {
        let mut wanted = self
            .actions()
            .into_iter()
            .filter_map(|action| match action {
                Action::Sign(record) => Some(record),
                Action::SignForcedLeave(_)
                | Action::Sync { .. }
                | Action::Dial { .. }
                | Action::PingOverConnection { .. } => None,
            });
        let record = wanted.next().expect("a record to sign");
        assert_eq!(wanted.next(), None);
        record
    }

    /// Lets a probe fail; each helper nacks or not. Returns the score after it.
    fn fail_a_probe(&mut self, nacks: bool) -> u32 {
        let requests = self.tick_until(|body| matches!(body, Body::PingReq { .. }));
        for (helper, body) in requests {
            let Body::PingReq { seq, .. } = body else {
                continue;
            };
            if nacks {
                self.receive(helper.as_str(), Body::Nack { seq });
                // A second one counts nothing.
                self.receive(helper.as_str(), Body::Nack { seq });
            }
        }
        let failed = self.core.counters().probes_failed;
        while self.core.counters().probes_failed == failed {
            self.tick();
        }
        self.core.health_score()
    }
}

#[test]
fn a_failed_probe_that_every_helper_nacks_leaves_the_score() {
    let mut bench = Bench::new(Config::lan(), &["a", "b", "c", "d"]);
    assert_eq!(bench.fail_a_probe(true), 0);
}

#[test]
fn every_missing_nack_worsens_the_score_and_an_answer_improves_it() {
    let mut bench = Bench::new(Config::lan(), &["a", "b", "c", "d"]);
    assert_eq!(bench.fail_a_probe(false), 3);
    let pings = bench.tick_until(|body| matches!(body, Body::Ping { .. }));
    let Body::Ping { seq, target } = &pings[0].1 else {
        panic!("no ping")
    };
    bench.receive(target.as_str(), Body::Ack { seq: *seq });
    assert_eq!(bench.core.health_score(), 2);
    assert_eq!(bench.core.counters().probes_direct, 1);
    // The answer to a probe counts once, and nobody else's at all.
    bench.receive(target.as_str(), Body::Ack { seq: *seq });
    bench.receive(
        "d",
        Body::Ack {
            seq: seq.wrapping_add(1),
        },
    );
    assert_eq!(bench.core.counters().stray_answers, 2);
}

#[test]
fn without_helpers_a_failed_probe_counts_as_one_sign() {
    let mut bench = Bench::new(Config::lan(), &["a"]);
    let failed = |bench: &Bench| bench.core.counters().probes_failed;
    while failed(&bench) == 0 {
        bench.tick();
    }
    assert_eq!(bench.core.health_score(), 1);
}

#[test]
fn a_ping_for_somebody_else_or_from_a_stranger_is_not_answered() {
    let mut bench = Bench::new(Config::lan(), &["a"]);
    bench.receive(
        "a",
        Body::Ping {
            seq: 1,
            target: id("b"),
        },
    );
    bench.receive(
        "x",
        Body::Ping {
            seq: 1,
            target: id("me"),
        },
    );
    assert_eq!(bench.sent(), []);
    assert_eq!(bench.core.counters().misdirected, 1);
    assert_eq!(bench.core.counters().unknown_senders, 1);
    bench.receive(
        "a",
        Body::Ping {
            seq: 1,
            target: id("me"),
        },
    );
    assert_eq!(bench.sent()[0].1.body, Body::Ack { seq: 1 });
}

#[test]
fn the_answer_to_a_suspect_tells_it_what_is_said() {
    let mut bench = Bench::new(Config::lan(), &["a", "b"]);
    let accusation = Accusation {
        node: id("a"),
        incarnation: 1,
        accuser: id("b"),
    };
    bench.tell(
        "b",
        Body::Gossip,
        vec![Statement::Suspect(accusation.clone())],
    );
    bench.receive(
        "a",
        Body::Ping {
            seq: 5,
            target: id("me"),
        },
    );
    let (_, message) = bench.sent().pop().unwrap();
    assert_eq!(message.statements[0], Statement::Suspect(accusation));
}

#[test]
fn whoever_knows_a_suspect_to_be_dead_answers_the_accuser() {
    let mut bench = Bench::new(Config::lan(), &["a", "b"]);
    while bench.core.member(&id("a")).unwrap().status != MemberStatus::Dead {
        bench.tick();
        for (to, message) in bench.sent() {
            if let (Body::Ping { seq, .. }, "b") = (message.body, to.as_str()) {
                bench.receive("b", Body::Ack { seq });
            }
        }
    }
    let accused = |accuser| Accusation {
        node: id("a"),
        incarnation: 1,
        accuser: id(accuser),
    };
    bench.tell("b", Body::Gossip, vec![Statement::Suspect(accused("b"))]);
    let (to, message) = bench.sent().pop().unwrap();
    assert_eq!(to, id("b"));
    assert_eq!(message.statements, [Statement::Dead(accused("me"))]);
    // One dead for both is nothing to talk about, nor is what a third one says.
    bench.now += Config::lan().gossip_interval;
    bench.tell("b", Body::Gossip, vec![Statement::Dead(accused("b"))]);
    bench.tell("b", Body::Gossip, vec![Statement::Suspect(accused("c"))]);
    assert_eq!(bench.sent(), []);
}

#[test]
fn an_accuser_that_missed_a_refutation_or_a_leave_gets_the_record() {
    let accused = |incarnation, accuser| Accusation {
        node: id("a"),
        incarnation,
        accuser: id(accuser),
    };
    for left in [false, true] {
        let mut bench = Bench::new(Config::lan(), &["a", "b"]);
        let mut newer = record("a", 3, 1);
        newer.left = left;
        let newer = signed(newer);
        bench.core.handle_record(bench.now, Arc::clone(&newer));
        // Only b answers from here on.
        let wait_while = |bench: &mut Bench, status| {
            while bench.core.member(&id("a")).unwrap().status == status {
                bench.tick();
                for (to, message) in bench.sent() {
                    if let (Body::Ping { seq, .. }, "b") = (message.body, to.as_str()) {
                        bench.receive("b", Body::Ack { seq });
                    }
                }
            }
            bench.sent();
        };
        wait_while(&mut bench, MemberStatus::Alive);
        if !left {
            // As long as it is suspect here, the refutation is still told.
            let old = Statement::Suspect(accused(2, "b"));
            bench.tell("b", Body::Gossip, vec![old]);
            assert_eq!(bench.sent(), []);
        }
        wait_while(&mut bench, MemberStatus::Suspect);
        let verdict = (!left).then(|| Statement::Dead(accused(3, "me")));
        bench.tell("b", Body::Gossip, vec![Statement::Suspect(accused(2, "b"))]);
        let (to, message) = bench.sent().pop().unwrap();
        assert_eq!(to, id("b"));
        assert_eq!(message.records, std::slice::from_ref(&newer.signed));
        assert_eq!(message.statements, Vec::from_iter(verdict));
        // What is told in another's name, and what is newer, is not answered.
        bench.now += Config::lan().gossip_interval;
        bench.tell("b", Body::Gossip, vec![Statement::Suspect(accused(2, "c"))]);
        bench.tell("b", Body::Gossip, vec![Statement::Suspect(accused(4, "b"))]);
        assert_eq!(bench.sent(), []);
    }
}

#[test]
fn an_accuser_is_answered_with_one_datagram_in_a_gossip_interval_whatever_it_says() {
    let mut names: Vec<String> = (0..40).map(|i| format!("gone{i}")).collect();
    let mut bench = Bench::new(Config::lan(), &["b", "c"]);
    for name in &names {
        let mut left = record(name, 3, 1);
        bench.core.handle_record(bench.now, signed(left.clone()));
        left.incarnation = 4;
        left.left = true;
        left.tags = BTreeMap::from([("k".to_owned(), "v".repeat(300))]);
        bench.core.handle_record(bench.now, signed(left));
    }
    bench.sent();
    let doubts = |by: &str, names: &[String]| -> Vec<Statement> {
        let accused = |name: &String| Accusation {
            node: id(name),
            incarnation: 3,
            accuser: id(by),
        };
        let doubts = names.iter().map(|name| Statement::Suspect(accused(name)));
        doubts.collect()
    };
    // The same said twice is not answered twice, and what does not fit has to be asked for again.
    names.push("gone0".to_owned());
    for (by, wait, answers) in [
        ("b", 0, 1),
        ("b", 0, 0),
        ("c", 0, 1),
        ("b", 199, 0),
        ("b", 1, 1),
    ] {
        bench.now += Duration::from_millis(wait);
        bench.tell(by, Body::Gossip, doubts(by, &names));
        let transmits: Vec<_> = std::iter::from_fn(|| bench.core.poll_transmit()).collect();
        assert_eq!(transmits.len(), answers, "{by} after {wait} ms");
        for transmit in transmits {
            assert_eq!(transmit.to, id(by));
            assert!(transmit.payload.len() <= Config::lan().max_payload_bytes);
            let message = Message::decode(&id("me"), &transmit.payload).unwrap();
            assert!((2..names.len()).contains(&message.records.len()));
        }
    }
    let few = doubts("b", &["gone7".to_owned()]);
    bench.now += Config::lan().gossip_interval;
    bench.tell("b", Body::Gossip, few);
    assert_eq!(bench.sent()[0].1.records.len(), 1);
}

#[test]
fn a_helper_nacks_before_the_requester_gives_up_and_passes_a_late_answer_on() {
    let mut bench = Bench::new(Config::lan(), &["a", "b"]);
    let asked_at = bench.now;
    bench.receive(
        "a",
        Body::PingReq {
            seq: 77,
            target: id("b"),
        },
    );
    let (to, message) = bench.sent().pop().unwrap();
    assert_eq!(to, id("b"));
    let Body::Ping { seq, .. } = message.body else {
        panic!("no ping")
    };
    let nacks = bench.tick_until(|body| matches!(body, Body::Nack { .. }));
    assert_eq!(nacks, [(id("a"), Body::Nack { seq: 77 })]);
    assert_eq!(bench.now - asked_at, Duration::from_millis(400));
    bench.receive("a", Body::Ack { seq });
    assert_eq!(bench.sent(), [], "a did not answer for b");
    bench.receive("b", Body::Ack { seq });
    assert_eq!(bench.sent().pop().unwrap().1.body, Body::Ack { seq: 77 });
}

#[test]
fn requests_beyond_the_limit_and_about_strangers_are_nacked_at_once() {
    let mut bench = Bench::new(Config::lan(), &["a", "b"]);
    bench.receive(
        "a",
        Body::PingReq {
            seq: 0,
            target: id("stranger"),
        },
    );
    assert_eq!(bench.sent().pop().unwrap().1.body, Body::Nack { seq: 0 });
    for seq in 0..u32::try_from(MAX_RELAYS).unwrap() {
        bench.receive(
            "a",
            Body::PingReq {
                seq,
                target: id("b"),
            },
        );
    }
    bench.sent();
    bench.receive(
        "a",
        Body::PingReq {
            seq: 999,
            target: id("b"),
        },
    );
    assert_eq!(bench.sent().pop().unwrap().1.body, Body::Nack { seq: 999 });
    assert_eq!(bench.core.counters().relays_refused, 1);
}

#[test]
fn a_full_table_refuses_newcomers_and_keeps_working() {
    let config = Config {
        max_members: 3,
        ..Config::lan()
    };
    let mut bench = Bench::new(config, &["a", "b", "c"]);
    assert_eq!(bench.core.members().count(), 3);
    assert_eq!(bench.core.counters().table_full, 1);
    assert!(bench.core.member(&id("c")).is_none());
    bench
        .core
        .handle_record(bench.now, signed(record("a", 2, 1)));
    assert_eq!(
        bench
            .core
            .member(&id("a"))
            .unwrap()
            .record
            .record
            .incarnation,
        2
    );
}

#[test]
fn no_datagram_is_larger_than_allowed_however_much_news_there_is() {
    let config = Config {
        max_payload_bytes: 1_080,
        ..Config::lan()
    };
    let mut bench = Bench::new(config, &[]);
    for i in 0..300_u64 {
        let mut record = record(&format!("{}{i}", "n".repeat(60)), 1, 1);
        record
            .tags
            .insert("k".into(), "v".repeat((i % 510) as usize));
        bench.core.handle_record(bench.now, signed(record));
    }
    let mut records = 0;
    for _ in 0..200 {
        bench.tick();
        while let Some(transmit) = bench.core.poll_transmit() {
            assert!(
                transmit.payload.len() <= 1_080,
                "{} bytes",
                transmit.payload.len()
            );
            records += Message::decode(&id("me"), &transmit.payload)
                .unwrap()
                .records
                .len();
        }
    }
    assert!(records > 300);
    assert_eq!(bench.core.counters().oversized_news, 0);
}

#[test]
fn tags_and_a_leave_while_a_signature_is_awaited_are_signed_next() {
    let mut bench = Bench::new(Config::lan(), &["a"]);
    let tags = BTreeMap::from([("k".to_owned(), "v".to_owned())]);
    bench.core.set_tags(bench.now, tags.clone()).unwrap();
    bench.core.leave(bench.now);
    let first = bench.signs();
    assert_eq!((first.incarnation, first.left), (2, false));
    bench.core.handle_signed(bench.now, signed(first));
    let second = bench.signs();
    assert!(second.left && second.incarnation > 2);
    assert_eq!(second.tags, tags);
    bench.core.handle_signed(bench.now, signed(second));
    assert_eq!(bench.actions(), []);
    assert_eq!(
        bench.core.member(&id("me")).unwrap().status,
        MemberStatus::Left
    );
    // Everybody hears of it at once, and probes are still answered.
    assert!(
        bench
            .sent()
            .iter()
            .any(|(to, m)| *to == id("a") && m.records.len() == 1)
    );
    bench.receive(
        "a",
        Body::Ping {
            seq: 1,
            target: id("me"),
        },
    );
    assert_eq!(bench.sent().pop().unwrap().1.body, Body::Ack { seq: 1 });
}

#[test]
fn tags_that_are_too_large_change_nothing() {
    let mut bench = Bench::new(Config::lan(), &[]);
    let tags = BTreeMap::from([("k".to_owned(), "v".repeat(MAX_TAG_BYTES))]);
    let bytes = tag_bytes(&tags);
    let error = bench.core.set_tags(bench.now, tags).unwrap_err();
    assert_eq!(error, TagsTooLarge(bytes));
    assert_eq!(bench.actions(), []);
}

#[test]
fn only_the_dead_can_be_forced_out() {
    let mut bench = Bench::new(Config::lan(), &["a"]);
    assert_eq!(
        bench.core.force_leave(bench.now, &id("x")),
        Err(ForceLeaveError::UnknownMember(id("x")))
    );
    assert_eq!(
        bench.core.force_leave(bench.now, &id("a")),
        Err(ForceLeaveError::NotDead(id("a"), MemberStatus::Alive))
    );
}

#[test]
fn an_equal_incarnation_with_other_content_is_refuted() {
    let mut bench = Bench::new(Config::lan(), &["a"]);
    let entry = |record: Record| SyncEntry {
        record: signed(record),
        status: MemberStatus::Alive,
        forced: None,
    };
    // The same record is no news.
    bench
        .core
        .handle_sync(bench.now, &id("a"), vec![entry(record("me", 1, 1))]);
    assert_eq!(bench.actions(), []);
    let mut other = record("me", 1, 1);
    other.tags.insert("k".into(), "from before".into());
    bench
        .core
        .handle_sync(bench.now, &id("a"), vec![entry(other)]);
    let refutation = bench.signs();
    assert_eq!(refutation.incarnation, 2);
    assert!(refutation.tags.is_empty());
}

#[test]
fn a_trace_of_an_earlier_life_is_outbid_and_the_teller_told() {
    let mut bench = Bench::new(Config::lan(), &["a"]);
    let entry = SyncEntry {
        record: signed(record("me", 41, 9)),
        status: MemberStatus::Dead,
        forced: None,
    };
    bench.core.handle_sync(bench.now, &id("a"), vec![entry]);
    let refutation = bench.signs();
    assert_eq!(
        (refutation.incarnation, refutation.boot),
        (42, BootId([1; 16]))
    );
    bench.core.handle_signed(bench.now, signed(refutation));
    assert_eq!(bench.actions(), [Action::Sync { with: id("a") }]);
}

#[test]
fn a_rival_with_our_name_is_told_of_and_does_not_start_a_flood() {
    let mut bench = Bench::new(Config::lan(), &["a"]);
    let mut signatures = 0;
    for _ in 0..50 {
        let above = bench.core.me().record.incarnation + 1;
        let entry = SyncEntry {
            record: signed(record("me", above, 9)),
            status: MemberStatus::Alive,
            forced: None,
        };
        bench.core.handle_sync(bench.now, &id("a"), vec![entry]);
        for action in bench.actions() {
            if let Action::Sign(record) = action {
                signatures += 1;
                bench.core.handle_signed(bench.now, signed(record));
            }
        }
    }
    assert_eq!(signatures, OUTBIDS_OF_A_RIVAL);
    let conflicts = bench
        .events()
        .iter()
        .filter(|e| matches!(e, Event::NameConflict { .. }))
        .count();
    assert_eq!(conflicts, 1);
}

#[test]
fn a_life_that_ended_is_not_taken_back_at_any_incarnation() {
    let mut bench = Bench::new(Config::lan(), &["a"]);
    bench
        .core
        .handle_record(bench.now, signed(record("a", 2, 2)));
    bench.events();
    bench
        .core
        .handle_record(bench.now, signed(record("a", 3, 1)));
    bench
        .core
        .handle_record(bench.now, signed(record("a", 4, 1)));
    let events = bench.events();
    assert!(
        matches!(&events[..], [Event::NameConflict { .. }]),
        "{events:?}"
    );
    assert_eq!(
        bench.core.member(&id("a")).unwrap().record.record.boot,
        BootId([2; 16])
    );
}

#[test]
fn what_others_tell_of_an_earlier_life_does_not_end_the_one_that_was_met() {
    for by_handshake in [true, false] {
        let mut bench = Bench::new(Config::lan(), &["b"]);
        let entry = |incarnation, boot| SyncEntry {
            record: signed(record("a", incarnation, boot)),
            status: MemberStatus::Alive,
            forced: None,
        };
        bench
            .core
            .handle_record(bench.now, signed(record("a", 1, 2)));
        bench
            .core
            .handle_sync(bench.now, &id("b"), vec![entry(5, 1)]);
        if by_handshake {
            bench
                .core
                .handle_record(bench.now, signed(record("a", 6, 2)));
        } else {
            bench
                .core
                .handle_sync(bench.now, &id("b"), vec![entry(6, 2)]);
        }
        // The trace of the past is over now.
        bench
            .core
            .handle_sync(bench.now, &id("b"), vec![entry(7, 1)]);
        let member = bench.core.member(&id("a")).unwrap();
        let stored = &member.record.record;
        assert_eq!((stored.boot, stored.incarnation), (BootId([2; 16]), 6));
    }
}

#[test]
fn a_handshake_weighs_more_than_a_later_life_by_hearsay() {
    let mut bench = Bench::new(Config::lan(), &["b"]);
    for (incarnation, boot) in [(1, 2), (5, 1)] {
        let entry = SyncEntry {
            record: signed(record("a", incarnation, boot)),
            status: MemberStatus::Alive,
            forced: None,
        };
        bench.core.handle_sync(bench.now, &id("b"), vec![entry]);
    }
    bench
        .core
        .handle_record(bench.now, signed(record("a", 6, 2)));
    assert_eq!(
        bench.core.member(&id("a")).unwrap().record.record.boot,
        BootId([2; 16])
    );
}

#[test]
fn a_tombstone_by_hearsay_is_told_to_the_dead_alone() {
    let mut bench = Bench::new(Config::lan(), &["b"]);
    let entry = SyncEntry {
        record: signed(record("a", 5, 1)),
        status: MemberStatus::Dead,
        forced: None,
    };
    bench.core.handle_sync(bench.now, &id("b"), vec![entry]);
    let is_told = |with: Option<&NodeId>| {
        let entries = bench.core.sync_entries(with);
        entries.iter().any(|e| e.record.record.node == id("a"))
    };
    assert!(is_told(Some(&id("a"))));
    assert!(!is_told(Some(&id("b"))));
    assert!(!is_told(None));
}

#[test]
fn a_verdict_after_the_shortest_wait_does_not_look_like_standing_still() {
    let mut bench = Bench::new(Config::lan(), &["a", "b", "c", "d", "e"]);
    let accusation = |accuser| Accusation {
        node: id("a"),
        incarnation: 1,
        accuser: id(accuser),
    };
    bench.tell("b", Body::Gossip, vec![Statement::Suspect(accusation("b"))]);
    let start = bench.now;
    while bench.now < start + bench.core.config().suspicion_min(6) + Duration::from_secs(2) {
        bench.tick();
    }
    assert_eq!(
        bench.core.member(&id("a")).unwrap().status,
        MemberStatus::Suspect
    );
    bench.tell("c", Body::Gossip, vec![Statement::Dead(accusation("c"))]);
    assert_eq!(bench.core.poll_timeout(), Some(bench.now));
    bench.tick();
    assert_eq!(bench.core.counters().late_timeouts, 0);
}

#[test]
fn a_signature_that_fails_is_asked_for_again() {
    let mut bench = Bench::new(Config::lan(), &["a"]);
    let accusation = Accusation {
        node: id("me"),
        incarnation: 1,
        accuser: id("a"),
    };
    bench.tell("a", Body::Gossip, vec![Statement::Suspect(accusation)]);
    let wanted = bench.signs();
    bench.core.handle_sign_failed(bench.now);
    let failed_at = bench.now;
    while bench.now < failed_at + SIGN_PAUSE {
        bench.tick();
    }
    assert_eq!(bench.signs(), wanted);
    bench.core.handle_signed(bench.now, signed(wanted));
    assert_eq!(bench.core.me().record.incarnation, 2);
}

#[test]
fn a_large_refutation_reaches_even_the_doubted() {
    let mut tags = BTreeMap::new();
    tags.insert("k".to_owned(), "v".repeat(MAX_TAG_BYTES - 16));
    let mut large = record("me", 2, 1);
    large.tags.clone_from(&tags);
    let large = signed(large);
    let mut payload = message::encode_record(&large.signed);
    message::encode_body(&Body::Ack { seq: 5 }, &mut payload);
    let config = Config {
        max_payload_bytes: payload.len(),
        ..Config::lan()
    };
    let mut bench = Bench::new(config, &["a", "b"]);
    assert_eq!(bench.core.config().max_payload_bytes, payload.len());
    bench.core.handle_signed(bench.now, large);
    let accusation = Accusation {
        node: id("a"),
        incarnation: 1,
        accuser: id("b"),
    };
    bench.tell("b", Body::Gossip, vec![Statement::Suspect(accusation)]);
    let mut answers = (0..40).map(|_| {
        let target = id("me");
        bench.receive("a", Body::Ping { seq: 5, target });
        bench.sent().pop().unwrap().1
    });
    let first = answers.next().unwrap();
    assert_eq!((first.records.len(), first.statements.len()), (1, 0));
    let last = answers.last().unwrap();
    assert_eq!(last.records.len(), 0);
    assert!(!last.statements.is_empty());
}

#[test]
fn a_node_that_is_alone_gets_well_again() {
    let mut bench = Bench::new(Config::lan(), &["a", "b"]);
    while bench.core.alive_count() > 1 || bench.core.health_score() == 0 {
        bench.tick();
    }
    let start = bench.now;
    while bench.core.health_score() > 0 {
        bench.tick();
        assert!(bench.now < start + Duration::from_secs(120));
    }
}

#[test]
fn records_with_absurd_incarnations_or_of_other_clusters_are_refused() {
    let mut bench = Bench::new(Config::lan(), &["a"]);
    bench
        .core
        .handle_record(bench.now, signed(record("a", u64::MAX, 1)));
    bench
        .core
        .handle_record(bench.now, signed(record("b", MAX_INCARNATION + 1, 1)));
    bench
        .core
        .handle_record(bench.now, signed(record("a", 2 + MAX_RECORD_STEP, 1)));
    assert_eq!(bench.core.counters().implausible, 3);
    let mut foreign = record("c", 1, 1);
    foreign.cluster = "other".parse().unwrap();
    bench.core.handle_record(bench.now, signed(foreign));
    assert_eq!(bench.core.members().count(), 2);
    assert_eq!(
        bench
            .core
            .member(&id("a"))
            .unwrap()
            .record
            .record
            .incarnation,
        1
    );
}

#[test]
fn an_answer_over_the_connection_saves_a_member() {
    let mut bench = Bench::new(Config::lan(), &["a"]);
    let seq = loop {
        bench.tick();
        let ping = bench.actions().into_iter().find_map(|action| match action {
            Action::PingOverConnection { seq, .. } => Some(seq),
            Action::Sign(_)
            | Action::SignForcedLeave(_)
            | Action::Sync { .. }
            | Action::Dial { .. } => None,
        });
        if let Some(seq) = ping {
            break seq;
        }
    };
    bench.core.handle_connection_ack(bench.now, &id("b"), seq);
    assert_eq!(bench.core.counters().stray_answers, 1);
    bench.core.handle_connection_ack(bench.now, &id("a"), seq);
    assert_eq!(bench.core.counters().probes_connection, 1);
    assert_eq!(bench.core.health_score(), 0);
    assert_eq!(bench.events(), []);
}

#[test]
fn random_messages_of_a_member_never_panic_and_accuse_nobody_unknown() {
    let mut bench = Bench::new(Config::lan(), &["a", "b", "c"]);
    let mut rng = Rng::new(5);
    let names = ["me", "a", "b", "c", "x"].map(id);
    for _ in 0..20_000 {
        let name = |rng: &mut Rng| names[rng.index(names.len())].clone();
        let incarnation = [0, 1, 2, 1 << 20, u64::MAX][rng.index(5)];
        let (node, accuser) = (name(&mut rng), name(&mut rng));
        let accusation = Accusation {
            node: node.clone(),
            incarnation,
            accuser,
        };
        let statement = match rng.below(2) {
            0 => Statement::Suspect(accusation),
            _ => Statement::Dead(accusation),
        };
        let seq = rng.below(4) as u32;
        let body = match rng.below(5) {
            0 => Body::Ping { seq, target: node },
            1 => Body::PingReq { seq, target: node },
            2 => Body::Ack { seq },
            3 => Body::Nack { seq },
            _ => Body::Gossip,
        };
        let from = name(&mut rng);
        bench.tell(from.as_str(), body, vec![statement]);
        if rng.below(10) == 0 {
            bench.tick();
        }
        for action in bench.actions() {
            if let Action::Sign(record) = action {
                bench.core.handle_signed(bench.now, signed(record));
            }
        }
        bench.sent();
        bench.events();
        assert_eq!(bench.core.members().count(), 4);
        assert_eq!(
            bench.core.member(&id("me")).unwrap().status,
            MemberStatus::Alive
        );
        assert!(bench.core.pending_news() <= 8);
    }
    assert!(bench.core.me().record.incarnation < 1 << 40);
}

fn probe_of(bench: &mut Bench, node: &str) -> u32 {
    loop {
        let pings = bench.tick_until(|body| matches!(body, Body::Ping { .. }));
        for (_, body) in pings {
            if let Body::Ping { seq, target } = body
                && target == id(node)
            {
                return seq;
            }
        }
    }
}

#[test]
fn only_an_answer_after_the_question_ends_a_probe_and_a_fresh_one_overrules_its_silence() {
    let mut bench = Bench::new(Config::lan(), &["a"]);
    probe_of(&mut bench, "a");
    let (asked, a) = (bench.now, id("a"));
    bench
        .core
        .handle_peer_answered(asked, &a, asked - Duration::from_millis(1));
    assert_eq!(bench.core.counters().probes_by_evidence, 0);
    bench.core.handle_peer_answered(asked, &a, asked);
    assert_eq!(bench.core.counters().probes_by_evidence, 1);

    // This one runs out; what came in before its time-out is fresh when it ends.
    probe_of(&mut bench, "a");
    let answered = bench.now - Duration::from_millis(1);
    let end = bench.now + bench.core.config().probe_interval;
    bench.core.handle_timeout(end - Duration::from_millis(500));
    bench.core.handle_peer_answered(bench.now, &a, answered);
    bench.now = end - Duration::from_millis(100);
    let fresh = bench.now - Duration::from_millis(800);
    bench.core.handle_peer_answered(bench.now, &a, fresh);
    assert_eq!(bench.core.counters().probes_by_evidence, 2);
    assert_eq!(bench.core.counters().probes_failed, 0);
}

#[test]
fn a_doubt_asks_in_every_way_at_once_and_a_flood_of_doubts_once_an_interval() {
    let mut bench = Bench::new(Config::lan(), &["a", "b", "c", "d", "e"]);
    bench.sent();
    for _ in 0..100 {
        bench
            .core
            .handle_peer_doubted(bench.now, &id("a"), Doubt::Stalled);
    }
    let sent = bench.sent();
    let pings = sent
        .iter()
        .filter(|(_, m)| matches!(m.body, Body::Ping { .. }));
    let requests = sent
        .iter()
        .filter(|(_, m)| matches!(m.body, Body::PingReq { .. }));
    assert_eq!((pings.count(), requests.count()), (1, 3));
    let seq = bench
        .actions()
        .into_iter()
        .find_map(|action| match action {
            Action::PingOverConnection { seq, .. } => Some(seq),
            Action::Sign(_)
            | Action::SignForcedLeave(_)
            | Action::Sync { .. }
            | Action::Dial { .. } => None,
        })
        .unwrap();
    bench.receive("a", Body::Ack { seq });
    assert_eq!(bench.core.counters().doubts, 100);
    // The doubt after an answer is remembered, and its question comes when the pause is over.
    let started = bench.now;
    bench
        .core
        .handle_peer_doubted(bench.now, &id("a"), Doubt::Refused);
    assert_eq!(bench.sent(), []);
    loop {
        bench.tick();
        let actions = bench.actions();
        if actions
            .iter()
            .any(|a| matches!(a, Action::PingOverConnection { node, .. } if *node == id("a")))
        {
            break;
        }
    }
    assert_eq!(bench.now, started + bench.core.config().probe_interval);
    // Of strangers, of the dead, and of ourselves nothing is asked.
    for node in ["x", "me"] {
        bench
            .core
            .handle_peer_doubted(bench.now, &id(node), Doubt::Refused);
    }
    assert_eq!(bench.core.counters().doubts, 101);
}

#[test]
fn a_doubt_outdates_the_answers_before_it() {
    let mut bench = Bench::new(Config::lan(), &["a"]);
    let a = id("a");
    bench.core.handle_peer_answered(bench.now, &a, bench.now);
    bench
        .core
        .handle_peer_doubted(bench.now, &a, Doubt::Refused);
    while bench.core.counters().probes_failed == 0 {
        bench.tick();
    }
    assert_eq!(bench.core.counters().probes_by_evidence, 0);
    assert_eq!(bench.core.member(&a).unwrap().status, MemberStatus::Suspect);
    // A second probe follows at once, since nobody else can confirm; both failed, the floor holds.
    let began = bench.now;
    while bench.core.member(&a).unwrap().status == MemberStatus::Suspect {
        bench.tick();
    }
    assert!(bench.now - began <= Duration::from_secs(1));
    assert_eq!(bench.core.counters().fast_deaths, 1);
}

#[test]
fn doubts_about_everybody_at_once_are_looked_at_in_batches() {
    let names: Vec<String> = (0..200).map(|i| format!("n{i}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut bench = Bench::new(Config::lan(), &names);
    bench.sent();
    for name in names {
        bench
            .core
            .handle_peer_doubted(bench.now, &id(name), Doubt::Refused);
    }
    assert_eq!(bench.core.probes.count(Purpose::Check), MAX_CHECKS);
}

#[test]
fn of_many_that_see_the_same_stall_a_few_ask_at_once_and_of_few_all() {
    for (members, at_least, at_most) in [(3, 3, 3), (400, 1, 10)] {
        let names: Vec<String> = (0..members).map(|i| format!("n{i}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let mut bench = Bench::new(Config::lan(), &names);
        // Each name stands for one of as many members that see one stall.
        for name in &names {
            bench
                .core
                .handle_peer_doubted(bench.now, &id(name), Doubt::Stalled);
        }
        let asked = bench.core.probes.count(Purpose::Check);
        assert!(
            (at_least..=at_most).contains(&asked),
            "{asked} of {members}"
        );
        let left = bench.core.counters().doubts_left_to_others;
        assert_eq!(left as usize + asked, members);
    }
}

#[test]
fn a_death_can_be_explained_until_it_is_forgotten() {
    let mut bench = Bench::new(Config::lan(), &["a", "b", "c", "d"]);
    let a = id("a");
    assert_eq!(bench.core.explain(&id("x")), None);
    let explanation = bench.core.explain(&a).unwrap();
    assert_eq!((explanation.case, explanation.last_death), (None, None));
    let accuse = |by: &str| {
        vec![Statement::Suspect(Accusation {
            node: id("a"),
            incarnation: 1,
            accuser: id(by),
        })]
    };
    let answered = bench.now;
    bench.core.handle_peer_answered(bench.now, &a, answered);
    bench.now += Duration::from_millis(1);
    bench
        .core
        .handle_peer_doubted(bench.now, &a, Doubt::Refused);
    bench.tell("b", Body::Gossip, accuse("b"));
    bench.tell("b", Body::Gossip, accuse("c"));
    bench.tell("d", Body::Gossip, accuse("d"));
    while bench.core.member(&a).unwrap().status != MemberStatus::Dead {
        bench.tick();
    }
    let case = bench.core.explain(&a).unwrap().case.unwrap();
    let accusations: Vec<(&str, bool, bool)> = case
        .accusations
        .iter()
        .map(|accused| (accused.by.as_str(), accused.first_hand, accused.counted))
        .collect();
    assert_eq!(
        accusations,
        [
            ("b", true, false),
            ("c", false, false),
            ("d", true, true),
            ("me", true, true)
        ]
    );
    assert_eq!((case.members, case.wanted, case.incarnation), (5, 2, 1));
    assert_eq!(case.probes.len(), 1);
    assert!(case.probes[0].over_connection && !case.probes[0].answered);
    // The others' connections are refused as well.
    assert_eq!(case.probes[0].helpers, 0);
    let verdict = case.verdict.unwrap();
    assert_eq!(verdict.ending, Ending::Dead { fast: true });
    assert_eq!(verdict.evidence.last_answer, Some(answered));
    assert_eq!(verdict.evidence.doubts[0].0, Doubt::Refused);
    assert_eq!(
        verdict.at,
        case.began + bench.core.config().suspicion_floor(5)
    );

    bench
        .core
        .handle_record(bench.now, signed(record("a", 2, 1)));
    let explanation = bench.core.explain(&a).unwrap();
    assert_eq!(explanation.status, MemberStatus::Alive);
    assert!(explanation.case.is_some(), "it is back, and was dead");
    bench.tell(
        "b",
        Body::Gossip,
        vec![Statement::Suspect(Accusation {
            node: a.clone(),
            incarnation: 2,
            accuser: id("b"),
        })],
    );
    bench
        .core
        .handle_record(bench.now, signed(record("a", 3, 1)));
    let explanation = bench.core.explain(&a).unwrap();
    let ending = explanation.case.unwrap().verdict.unwrap().ending;
    assert_eq!(ending, Ending::Refuted);
    assert!(explanation.last_death.is_some());
}

#[test]
fn who_was_at_an_address_before_is_asked_at_once_and_told_of_if_both_live() {
    let mut bench = Bench::new(Config::lan(), &["a", "b"]);
    let addr = bench
        .core
        .member(&id("a"))
        .unwrap()
        .record
        .record
        .gossip_addr;
    let mut newcomer = record("z", 1, 1);
    newcomer.gossip_addr = addr;
    bench
        .core
        .handle_record(bench.now, signed(newcomer.clone()));
    bench.events();
    bench.actions();
    bench.sent();
    bench.core.handle_timeout(bench.now);
    let seq = bench
        .sent()
        .into_iter()
        .find_map(|(to, message)| match message.body {
            Body::Ping { seq, .. } if to == id("a") => Some(seq),
            Body::Ping { .. }
            | Body::PingReq { .. }
            | Body::Ack { .. }
            | Body::Nack { .. }
            | Body::Gossip => None,
        });
    bench.receive("a", Body::Ack { seq: seq.unwrap() });
    let conflict = Event::AddressConflict {
        node: id("a"),
        other: id("z"),
        addr,
    };
    assert_eq!(bench.events(), [conflict]);
    assert_eq!(bench.core.counters().address_conflicts, 1);
    // Both keep their places, and whoever moves away is not told of.
    assert_eq!(bench.core.alive_count(), 4);
    newcomer.incarnation = 2;
    newcomer.gossip_addr = NOBODY.parse().unwrap();
    bench.core.handle_record(bench.now, signed(newcomer));
    bench.tick();
    let kinds = bench.events();
    assert!(matches!(kinds[..], [Event::Updated { .. }]), "{kinds:?}");
}

#[test]
fn a_forced_leave_of_the_living_does_not_wait_for_their_death() {
    let mut bench = Bench::new(Config::lan(), &["a"]);
    let forced = ForcedLeave {
        node: id("a"),
        incarnation: 1,
        issuer: id("me"),
        signature: vec![1],
    };
    bench.core.handle_forced_leave(bench.now, forced);
    assert_eq!(bench.core.counters().implausible, 1);
    while bench.core.member(&id("a")).unwrap().status != MemberStatus::Dead {
        bench.tick();
    }
    bench.tick();
    let status = bench.core.member(&id("a")).unwrap().status;
    assert_eq!(status, MemberStatus::Dead);
}

#[test]
fn a_forced_leave_that_cannot_act_is_not_worth_verifying() {
    let mut bench = Bench::new(Config::lan(), &["a", "b"]);
    let forced = |node: &str, incarnation| ForcedLeave {
        node: id(node),
        incarnation,
        issuer: id("b"),
        signature: vec![1],
    };
    assert!(bench.core.wants_forced_leave(&forced("me", 1)));
    for idle in [forced("x", 1), forced("a", 2), forced("a", 1)] {
        assert!(!bench.core.wants_forced_leave(&idle), "{idle:?}");
    }
    let counters = *bench.core.counters();
    assert_eq!(
        (
            counters.unknown_members,
            counters.stale,
            counters.implausible
        ),
        (1, 1, 1)
    );
    // What a sync says of it may change that before the forced leave is looked at again.
    assert!(bench.core.may_want_forced_leave(&forced("x", 1)));
    assert!(bench.core.may_want_forced_leave(&forced("a", 1)));
    assert!(!bench.core.may_want_forced_leave(&forced("a", 0)));
    while bench.core.member(&id("a")).unwrap().status == MemberStatus::Alive {
        bench.tick();
    }
    assert!(bench.core.wants_forced_leave(&forced("a", 1)));
    bench.core.handle_forced_leave(bench.now, forced("a", 1));
    assert!(!bench.core.wants_forced_leave(&forced("a", 1)));
    assert!(!bench.core.may_want_forced_leave(&forced("a", 1)));
}

/// A node that knows only `b`, which says of a stranger that it is dead and that `b` forced it out.
fn told_of_a_stranger_forced_out() -> Bench {
    let mut bench = Bench::new(Config::lan(), &["b"]);
    let entry = SyncEntry {
        record: signed(record("x", 1, 1)),
        status: MemberStatus::Left,
        forced: None,
    };
    bench.core.handle_sync(bench.now, &id("b"), vec![entry]);
    let forced = ForcedLeave {
        node: id("x"),
        incarnation: 1,
        issuer: id("b"),
        signature: vec![1],
    };
    bench.core.handle_forced_leave(bench.now, forced);
    let status = bench.core.member(&id("x")).unwrap().status;
    assert_eq!(status, MemberStatus::Dead, "nobody here has asked it");
    bench
}

/// Answers the pings of `b` and of the stranger if `of_stranger`, for that long.
fn answer_pings(bench: &mut Bench, lasting: Duration, of_stranger: bool) {
    let until = bench.now + lasting;
    while bench.now < until {
        bench.tick();
        for (to, message) in bench.sent() {
            if let Body::Ping { seq, target } = message.body
                && to == target
                && (of_stranger || target != id("x"))
            {
                bench.receive(target.as_str(), Body::Ack { seq });
            }
        }
    }
}

#[test]
fn nobody_is_forced_out_on_hearsay_of_his_death() {
    let mut bench = told_of_a_stranger_forced_out();
    answer_pings(&mut bench, Duration::from_secs(5), true);
    let status = |bench: &Bench| bench.core.member(&id("x")).unwrap().status;
    assert_eq!(status(&bench), MemberStatus::Alive, "it answered");
    // Nor does that word wait until it dies.
    answer_pings(&mut bench, Duration::from_secs(60), false);
    assert_eq!(status(&bench), MemberStatus::Dead);
    let is_left = |event: &Event| matches!(event, Event::Left { .. });
    assert!(!bench.events().iter().any(is_left));
}

#[test]
fn who_is_dead_by_hearsay_is_forced_out_once_it_has_not_answered() {
    let mut bench = told_of_a_stranger_forced_out();
    answer_pings(&mut bench, Duration::from_secs(5), false);
    let status = bench.core.member(&id("x")).unwrap().status;
    assert_eq!(status, MemberStatus::Left);
    assert_eq!(bench.core.health_score(), 0, "that it is gone was known");
    // Nobody here was ever told that it was up.
    assert_eq!(bench.events(), []);
}

#[test]
fn a_sync_carries_what_forced_a_member_out() {
    let mut bench = Bench::new(Config::lan(), &["a"]);
    while bench.core.member(&id("a")).unwrap().status != MemberStatus::Dead {
        bench.tick();
    }
    let forced = ForcedLeave {
        node: id("a"),
        incarnation: 1,
        issuer: id("me"),
        signature: vec![1],
    };
    bench.core.handle_forced_leave(bench.now, forced.clone());
    let entries = bench.core.sync_entries(None);
    let carried: Vec<_> = entries.iter().filter_map(|e| e.forced.as_deref()).collect();
    assert_eq!(carried, [&forced]);
}

#[test]
fn without_own_probes_a_foreign_verdict_is_taken_over_and_explained() {
    let config = Config {
        rules: Rules::memberlist(),
        ..Config::lan()
    };
    let mut bench = Bench::new(config, &["a", "b", "c"]);
    let dead = vec![Statement::Dead(Accusation {
        node: id("a"),
        incarnation: 1,
        accuser: id("c"),
    })];
    bench.tell("b", Body::Gossip, dead);
    let explanation = bench.core.explain(&id("a")).unwrap();
    assert_eq!(explanation.status, MemberStatus::Dead);
    let ending = explanation.case.unwrap().verdict.unwrap().ending;
    assert_eq!(ending, Ending::TakenOver { from: id("c") });
    // And evidence is not listened to.
    bench
        .core
        .handle_peer_doubted(bench.now, &id("b"), Doubt::Refused);
    assert_eq!(bench.core.counters().doubts, 0);
}

#[test]
fn whoever_hears_nobody_doubts_itself_rather_than_everybody() {
    let mut bench = Bench::new(Config::lan(), &["a", "b", "c"]);
    bench.now += Duration::from_secs(2);
    for name in ["a", "b", "c"] {
        bench
            .core
            .handle_peer_doubted(bench.now, &id(name), Doubt::Unanswered);
    }
    assert_eq!(bench.core.counters().doubts_while_deaf, 3);
    assert_eq!(bench.core.probes.count(Purpose::Check), 0);
    // A single voice shows that it is not this node.
    bench.receive("b", Body::Gossip);
    bench
        .core
        .handle_peer_doubted(bench.now, &id("a"), Doubt::Unanswered);
    assert_eq!(bench.core.probes.count(Purpose::Check), 1);
}

#[test]
fn an_accusation_is_not_believed_while_an_answer_is_fresh_and_the_accused_is_told() {
    let mut bench = Bench::new(Config::lan(), &["a", "b", "c"]);
    bench
        .core
        .handle_peer_answered(bench.now, &id("a"), bench.now);
    bench.sent();
    let accusation = Accusation {
        node: id("a"),
        incarnation: 1,
        accuser: id("b"),
    };
    for _ in 0..10 {
        let suspect = Statement::Suspect(accusation.clone());
        bench.tell("b", Body::Gossip, vec![suspect]);
    }
    let told = bench.sent();
    assert_eq!(told.len(), 1, "once an interval");
    assert_eq!(told[0].0, id("a"));
    assert_eq!(
        told[0].1.statements,
        [Statement::Suspect(accusation.clone())]
    );
    assert_eq!(bench.core.counters().vetoes, 10);
    assert_eq!(bench.events(), []);
    bench.now += bench.core.config().probe_interval;
    bench.tell("b", Body::Gossip, vec![Statement::Suspect(accusation)]);
    let suspect = Event::Suspect {
        node: id("a"),
        by: id("b"),
    };
    assert_eq!(bench.events(), [suspect], "the answer is no longer fresh");
}

#[test]
fn the_last_words_of_an_earlier_life_do_not_lock_out_the_present_one() {
    for left in [true, false] {
        let mut bench = Bench::new(Config::lan(), &["b"]);
        let (now, b) = (bench.now, id("b"));
        let entry = |record: Record| SyncEntry {
            record: signed(record),
            status: MemberStatus::Alive,
            forced: None,
        };
        bench.core.handle_record(now, signed(record("a", 1, 1)));
        // Others have met the second life, and the first one's last words come late.
        let last = Record {
            left,
            ..record("a", 3, 1)
        };
        let told = vec![entry(record("a", 2, 2)), entry(last)];
        bench.core.handle_sync(now, &b, told);
        assert_eq!(
            bench
                .core
                .member(&id("a"))
                .unwrap()
                .record
                .record
                .incarnation,
            3
        );
        let present = record("a", 4, 2);
        if left {
            bench
                .core
                .handle_sync(now, &b, vec![entry(present.clone())]);
        } else {
            // Which life is the later one only a connection can tell.
            bench.core.handle_record(now, signed(present.clone()));
        }
        let member = bench.core.member(&id("a")).unwrap();
        assert_eq!(member.record.record, present);
        assert_eq!(member.status, MemberStatus::Alive);
    }
}

#[test]
fn a_suspect_that_answers_and_does_not_refute_is_asked_at_a_steady_pace() {
    let mut bench = Bench::new(Config::lan(), &["a", "b", "c"]);
    let accusation = Accusation {
        node: id("a"),
        incarnation: 1,
        accuser: id("b"),
    };
    bench.tell("b", Body::Gossip, vec![Statement::Suspect(accusation)]);
    let (start, minute) = (bench.now, Duration::from_secs(60));
    let mut asked = 0;
    while bench.now < start + minute {
        assert!(asked < 1_000, "without a pause");
        bench.tick();
        for (to, message) in bench.sent() {
            if let Body::Ping { seq, .. } = message.body {
                asked += u32::from(to == id("a"));
                bench.receive(to.as_str(), Body::Ack { seq });
            }
        }
    }
    let member = bench.core.member(&id("a")).unwrap();
    assert_eq!(member.status, MemberStatus::Suspect);
    // In its turn once in three intervals, and besides once in two to four.
    assert!((20..=60).contains(&asked), "{asked}");
}

#[test]
fn what_is_said_in_the_name_of_nobody_or_of_the_dead_accuses_nobody() {
    let mut bench = Bench::new(Config::lan(), &["a", "b", "c"]);
    let farewell = Record {
        left: true,
        ..record("c", 2, 1)
    };
    bench.core.handle_record(bench.now, signed(farewell));
    bench.events();
    for accuser in ["ghost", "c"] {
        let accusation = Accusation {
            node: id("a"),
            incarnation: 1,
            accuser: id(accuser),
        };
        bench.tell(
            "b",
            Body::Gossip,
            vec![Statement::Suspect(accusation.clone())],
        );
        bench.tell("b", Body::Gossip, vec![Statement::Dead(accusation)]);
    }
    assert_eq!(bench.events(), []);
    assert_eq!(bench.core.counters().unknown_members, 4);
}

#[test]
fn a_record_of_another_life_makes_this_node_ask_the_life_that_it_met() {
    let mut bench = Bench::new(Config::lan(), &["a", "b"]);
    bench.actions();
    let (now, b) = (bench.now, id("b"));
    let entry = SyncEntry {
        record: signed(record("a", 9, 2)),
        status: MemberStatus::Alive,
        forced: None,
    };
    bench.core.handle_sync(now, &b, vec![entry]);
    let sync = Action::Sync { with: id("a") };
    assert!(bench.actions().contains(&sync));
    // It is there, and goes above.
    bench.core.handle_record(now, signed(record("a", 10, 1)));
    let member = bench.core.member(&id("a")).unwrap();
    assert_eq!(member.record.record, record("a", 10, 1));
}

#[test]
fn however_often_it_is_accused_a_member_gossips_at_its_pace() {
    let mut bench = Bench::new(Config::lan(), &["a", "b", "c", "d"]);
    let start = bench.now;
    let (mut turns, mut told) = (Vec::new(), 0_u32);
    while bench.now < start + Duration::from_secs(2) {
        let accusation = Accusation {
            node: id("me"),
            incarnation: bench.core.me().record.incarnation,
            accuser: id("a"),
        };
        bench.tell("a", Body::Gossip, vec![Statement::Suspect(accusation)]);
        told += u32::from(!bench.actions().is_empty());
        let me = Record {
            incarnation: bench.core.me().record.incarnation + 1,
            ..bench.core.me().record.clone()
        };
        bench.core.handle_signed(bench.now, signed(me));
        if bench.core.poll_timeout().unwrap() <= bench.now + Duration::from_millis(1) {
            bench.tick();
        }
        let gossip = bench
            .sent()
            .into_iter()
            .filter(|(_, m)| m.body == Body::Gossip);
        if gossip.count() > 0 {
            turns.push(bench.now);
        }
        bench.now += Duration::from_millis(1);
    }
    assert!(told > 1_000, "{told}");
    let interval = bench.core.config().gossip_interval - Duration::from_millis(1);
    assert!(turns.len() > 5);
    assert!(
        turns.windows(2).all(|pair| pair[1] - pair[0] >= interval),
        "{turns:?}"
    );
}

#[test]
fn a_refusal_from_before_a_standstill_shortens_no_suspicion() {
    let mut bench = Bench::new(Config::lan(), &["a", "b", "c", "d"]);
    bench
        .core
        .handle_peer_doubted(bench.now, &id("a"), Doubt::Refused);
    bench.now += Duration::from_secs(30);
    for by in ["b", "c", "d"] {
        let accusation = Accusation {
            node: id("a"),
            incarnation: 1,
            accuser: id(by),
        };
        bench.tell(by, Body::Gossip, vec![Statement::Suspect(accusation)]);
    }
    let (start, now) = (bench.now, bench.now);
    bench.core.handle_timeout(now);
    while bench.core.member(&id("a")).unwrap().status != MemberStatus::Dead {
        bench.tick();
    }
    let min = bench.core.config().suspicion_min(5);
    assert!(bench.now >= start + min, "{:?}", bench.now - start);
}

/// The only other member refutes; a probe that runs is of the incarnation before and says nothing.
fn refute(bench: &mut Bench, incarnation: u64) {
    let refutation = signed(record("a", incarnation, 1));
    bench.core.handle_record(bench.now, refutation);
    bench.core.abandon_probes_of(&id("a"));
}

/// Lets probes of `a` fail until it is suspect; tells how many.
fn probes_until_suspect(bench: &mut Bench) -> u64 {
    let before = bench.core.counters().probes_failed;
    let status = |bench: &Bench| bench.core.member(&id("a")).unwrap().status;
    while status(bench) == MemberStatus::Alive {
        bench.tick();
    }
    assert_eq!(status(bench), MemberStatus::Suspect);
    bench.core.counters().probes_failed - before
}

#[test]
fn who_refutes_again_and_again_has_to_fail_ever_more_probes_in_a_row() {
    let mut config = Config::lan();
    config.rules.lha_probe = false;
    let mut bench = Bench::new(config, &["a"]);
    let mut incarnation = 1;
    for probes in [1, 2, 3, 4, 5, 5] {
        assert_eq!(probes_until_suspect(&mut bench), probes);
        incarnation += 1;
        refute(&mut bench, incarnation);
    }
    // An answer in between, and the row begins anew.
    let failed = bench.core.counters().probes_failed;
    while bench.core.counters().probes_failed < failed + 3 {
        bench.tick();
    }
    bench.sent();
    let pings = bench.tick_until(|body| matches!(body, Body::Ping { .. }));
    let Body::Ping { seq, .. } = pings[0].1 else {
        panic!("no ping")
    };
    bench.receive("a", Body::Ack { seq });
    assert_eq!(probes_until_suspect(&mut bench), 5);
    refute(&mut bench, incarnation + 1);
    // Two minutes without one, two refutations forgotten.
    let end = bench.now + Duration::from_secs(125);
    while bench.now < end {
        let pings = bench.tick_until(|body| matches!(body, Body::Ping { .. }));
        for (_, body) in pings {
            if let Body::Ping { seq, .. } = body {
                bench.receive("a", Body::Ack { seq });
            }
        }
    }
    assert_eq!(probes_until_suspect(&mut bench), 3);
}

#[test]
fn who_has_refuted_and_whose_ports_refuse_is_suspected_at_once() {
    let mut bench = Bench::new(Config::lan(), &["a"]);
    probes_until_suspect(&mut bench);
    refute(&mut bench, 2);
    bench
        .core
        .handle_peer_doubted(bench.now, &id("a"), Doubt::Refused);
    assert_eq!(probes_until_suspect(&mut bench), 1);
}

#[test]
fn whose_accusations_were_refuted_twice_in_a_minute_is_not_believed_until_later() {
    let mut bench = Bench::new(Config::lan(), &["a", "b", "c", "d", "e"]);
    let mut incarnation = 1;
    let accuse = |bench: &mut Bench, by: &str, incarnation| {
        let accusation = Accusation {
            node: id("a"),
            incarnation,
            accuser: id(by),
        };
        bench.sent();
        bench.tell(by, Body::Gossip, vec![Statement::Suspect(accusation)]);
        bench.core.member(&id("a")).unwrap().status
    };
    for _ in 0..2 {
        let status = accuse(&mut bench, "b", incarnation);
        assert_eq!(status, MemberStatus::Suspect);
        incarnation += 1;
        refute(&mut bench, incarnation);
    }
    let status = accuse(&mut bench, "b", incarnation);
    assert_eq!(status, MemberStatus::Alive);
    assert_eq!(bench.core.counters().disbelieved, 1);
    // The accused is told, so that it can refute what others may believe.
    let sent = bench.sent();
    assert_eq!(sent.len(), 1);
    assert_eq!(sent[0].0, id("a"));
    assert!(matches!(sent[0].1.statements[..], [Statement::Suspect(_)]));
    // And it is asked at once, in every way.
    let now = bench.now;
    bench.core.handle_timeout(now);
    let bodies = bench.sent().into_iter().map(|(to, m)| (to, m.body));
    let (pings, others): (Vec<_>, Vec<_>) = bodies.partition(|(to, _)| *to == id("a"));
    assert!(matches!(pings[..], [(_, Body::Ping { .. })]), "{pings:?}");
    assert!(matches!(others[0].1, Body::PingReq { .. }), "{others:?}");
    assert_eq!(
        bench.core.member(&id("a")).unwrap().status,
        MemberStatus::Alive
    );
    // Once it is suspected by somebody else, the same word confirms it.
    let status = accuse(&mut bench, "c", incarnation);
    assert_eq!(status, MemberStatus::Suspect);
    accuse(&mut bench, "b", incarnation);
    let case = bench.core.explain(&id("a")).unwrap().case.unwrap();
    let by: Vec<_> = case.accusations.iter().map(|a| a.by.as_str()).collect();
    assert_eq!(by, ["c", "b"]);
    assert!(case.accusations[1].counted);
    // c was wrong once, which is forgiven at once; one of b's is forgotten after a minute.
    incarnation += 1;
    refute(&mut bench, incarnation);
    bench.now += Config::lan().probe_interval * REFUTATION_MEMORY;
    let status = accuse(&mut bench, "b", incarnation);
    assert_eq!(status, MemberStatus::Suspect);
}

#[test]
fn what_a_sync_tells_blames_nobody() {
    let mut bench = Bench::new(Config::lan(), &["a", "b", "c", "d", "e"]);
    let mut incarnation = 1;
    for _ in 0..3 {
        let entry = SyncEntry {
            record: signed(record("a", incarnation, 1)),
            status: MemberStatus::Suspect,
            forced: None,
        };
        bench.core.handle_sync(bench.now, &id("b"), vec![entry]);
        let status = bench.core.member(&id("a")).unwrap().status;
        assert_eq!(status, MemberStatus::Suspect);
        incarnation += 1;
        refute(&mut bench, incarnation);
    }
    let accusation = Accusation {
        node: id("a"),
        incarnation,
        accuser: id("b"),
    };
    bench.tell("b", Body::Gossip, vec![Statement::Suspect(accusation)]);
    assert_eq!(bench.core.counters().disbelieved, 0);
    assert_eq!(
        bench.core.member(&id("a")).unwrap().status,
        MemberStatus::Suspect
    );
}

#[test]
fn a_suspect_is_looked_at_although_a_probe_of_its_earlier_incarnation_was_running() {
    let names: Vec<String> = (0..40).map(|i| format!("n{i}")).collect();
    let mut members: Vec<&str> = names.iter().map(String::as_str).collect();
    members.extend(["a", "b"]);
    let mut bench = Bench::new(Config::lan(), &members);
    while bench.core.probes.of(&id("a")).is_none() {
        bench.tick();
        for (to, message) in bench.sent() {
            if let (Body::Ping { seq, .. }, true) = (message.body, to != id("a")) {
                bench.receive(to.as_str(), Body::Ack { seq });
            }
        }
    }
    let newer = signed(record("a", 2, 1));
    bench.core.handle_record(bench.now, newer);
    let accusation = Accusation {
        node: id("a"),
        incarnation: 2,
        accuser: id("b"),
    };
    bench.tell("b", Body::Gossip, vec![Statement::Suspect(accusation)]);
    // The look that was planned finds the old probe running.
    let old = bench.core.probes.of(&id("a")).unwrap();
    bench.core.on_check(bench.now, id("a"));
    bench.core.timers.cancel(&Timer::Check(id("a")));
    assert_eq!(bench.core.probes.of(&id("a")), Some(old));
    let failed = bench.core.counters().probes_failed;
    bench.core.on_probe_failed(bench.now, old);
    assert_eq!(bench.core.counters().probes_failed, failed + 1);
    let now = bench.now;
    bench.core.handle_timeout(now);
    assert!(bench.core.probes.of(&id("a")).is_some_and(|seq| seq != old));
}

/// The partners of the first `count` syncs of a node whose members are all well.
fn sync_partners(members: &[&str], count: usize) -> Vec<NodeId> {
    let mut bench = Bench::new(Config::lan(), members);
    let mut partners = Vec::new();
    while partners.len() < count {
        bench.tick();
        for (to, message) in bench.sent() {
            if let Body::Ping { seq, .. } = message.body {
                bench.receive(to.as_str(), Body::Ack { seq });
            }
        }
        partners.extend(
            bench
                .actions()
                .into_iter()
                .filter_map(|action| match action {
                    Action::Sync { with } => Some(with),
                    _ => None,
                }),
        );
    }
    partners
}

#[test]
fn two_syncs_in_a_row_go_to_two_members() {
    let partners = sync_partners(&["a", "b", "c"], 60);
    assert!(
        partners.windows(2).all(|pair| pair[0] != pair[1]),
        "{partners:?}"
    );
    for name in ["a", "b", "c"] {
        let share = partners.iter().filter(|node| **node == id(name)).count();
        assert!(share >= 10, "{name} is asked {share} times of 60");
    }
    let only = sync_partners(&["a"], 3);
    assert_eq!(only, [id("a"), id("a"), id("a")]);
}
