//! One story per rule, told from the node `m`: `a` is a lower id, `z` a higher one.

use super::*;

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

struct Story {
    mesh: Mesh,
    now: Instant,
}

#[expect(
    clippy::disallowed_methods,
    reason = "a story needs some instant to start from"
)]
fn epoch() -> Instant {
    Instant::now()
}

fn id(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

fn addr(port: u16) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, 1], port))
}

fn boot(life: u8) -> BootId {
    BootId([life; 16])
}

/// Where a node of one letter listens.
fn home(name: &str) -> SocketAddr {
    addr(u16::from(name.as_bytes()[0]))
}

impl Story {
    fn new() -> Self {
        Self::with(Config::default())
    }

    fn with(config: Config) -> Self {
        let now = epoch();
        Self {
            mesh: Mesh::new(config, id("m"), boot(0), 1, now),
            now,
        }
    }

    fn member(&mut self, name: &str, life: u8) {
        self.mesh
            .member_up(self.now, &id(name), home(name), boot(life));
    }

    fn up(&mut self, connection: ConnectionId, name: &str, life: u8, side: Side) {
        let at = if side == Side::Dialed {
            home(name)
        } else {
            addr(50_000)
        };
        self.mesh
            .handle_up(self.now, connection, &id(name), boot(life), side, at);
    }

    fn accept(&mut self, name: &str, life: u8) -> ConnectionId {
        let connection = self.mesh.allocate();
        self.up(connection, name, life, Side::Accepted);
        connection
    }

    fn down(&mut self, connection: ConnectionId, reason: CloseReason) {
        self.mesh.handle_down(self.now, connection, &reason);
    }

    fn used(&mut self, connection: ConnectionId) {
        self.mesh.handle_used(self.now, connection);
    }

    /// Lets time pass, timer by timer.
    fn pass(&mut self, duration: Duration) {
        let end = self.now + duration;
        let mut turns = 0;
        while let Some(at) = self.mesh.poll_timeout().filter(|at| *at <= end) {
            turns += 1;
            assert!(turns < 10_000, "a busy loop");
            self.now = self.now.max(at);
            self.mesh.handle_timeout(self.now);
        }
        self.now = end;
    }

    fn actions(&mut self) -> Vec<Action> {
        std::iter::from_fn(|| self.mesh.poll_action()).collect()
    }

    fn events(&mut self) -> Vec<Event> {
        std::iter::from_fn(|| self.mesh.poll_event()).collect()
    }

    fn dials(&mut self) -> Vec<(ConnectionId, SocketAddr)> {
        self.actions()
            .into_iter()
            .filter_map(|action| match action {
                Action::Dial {
                    connection, addr, ..
                } => Some((connection, addr)),
                Action::Resolve { .. }
                | Action::Use { .. }
                | Action::Drain { .. }
                | Action::Close { .. } => None,
            })
            .collect()
    }

    /// The one dial that happens within `duration`.
    fn dial_within(&mut self, duration: Duration) -> ConnectionId {
        self.pass(duration);
        let dials = self.dials();
        assert_eq!(dials.len(), 1, "{dials:?}");
        dials[0].0
    }

    /// Makes `name` a member and connects to it: dialled when we are lower, else accepted and used.
    fn connect(&mut self, name: &str) -> ConnectionId {
        self.member(name, 1);
        let connection = if name > "m" {
            let connection = self.dial_within(100 * MS);
            self.up(connection, name, 1, Side::Dialed);
            connection
        } else {
            let connection = self.accept(name, 1);
            self.used(connection);
            connection
        };
        assert_eq!(
            self.events(),
            [Event::Connected {
                node: id(name),
                connection
            }]
        );
        self.actions();
        connection
    }

    fn connect_accepted(&mut self, name: &str) {
        self.member(name, 1);
        self.accept(name, 1);
        self.actions();
        self.events();
    }

    fn next_dial(&self, name: &str) -> Option<Duration> {
        let view = self.mesh.peer(self.now, &id(name))?;
        view.next_dial
            .map(|at| at.saturating_duration_since(self.now))
    }
}

#[test]
fn the_lower_id_dials_within_a_tenth_of_a_second() {
    let mut story = Story::new();
    story.member("z", 1);
    let connection = story.dial_within(100 * MS);
    assert_eq!(
        story.mesh.peer(story.now, &id("z")).unwrap().dialing,
        Some(connection)
    );
}

#[test]
fn the_higher_id_dials_only_after_the_grace() {
    let mut story = Story::new();
    story.member("a", 1);
    story.pass(Duration::from_millis(2_999));
    assert_eq!(story.dials(), []);
    story.dial_within(1_001 * MS);
}

#[test]
fn the_higher_id_does_not_dial_once_the_lower_one_did() {
    let mut story = Story::new();
    story.member("a", 1);
    story.pass(SECOND);
    story.accept("a", 1);
    story.pass(60 * SECOND);
    assert_eq!(story.dials(), []);
}

#[test]
fn this_node_itself_is_no_peer() {
    let mut story = Story::new();
    story.member("m", 0);
    story.mesh.handle_hint(story.now, &id("m"), addr(1));
    assert_eq!(story.mesh.peers(story.now).count(), 0);
}

#[test]
fn retries_go_on_without_end_below_a_bound_that_doubles() {
    let mut story = Story::new();
    story.member("z", 1);
    let mut connection = story.dial_within(100 * MS);
    let mut longest = Duration::ZERO;
    for failures in 0..300 {
        story.down(connection, CloseReason::Refused);
        let delay = story.next_dial("z").unwrap();
        let bound = (100 * MS * 2_u32.pow(failures.min(10))).min(10 * SECOND);
        assert!(delay <= bound, "{delay:?} after {failures} failures");
        longest = longest.max(delay);
        connection = story.dial_within(delay);
    }
    assert!(longest > 9 * SECOND, "{longest:?}");
    let view = story.mesh.peer(story.now, &id("z")).unwrap();
    assert_eq!(view.dials, 301);
    assert_eq!(
        view.last_error.as_deref(),
        Some("port refused by the peer's host")
    );
}

#[test]
fn the_backoff_starts_anew_only_after_a_healthy_while() {
    let mut story = Story::new();
    story.member("z", 1);
    for round in 0..50 {
        let mut connection = story.dial_within(15 * SECOND);
        story.up(connection, "z", 1, Side::Dialed);
        story.pass(29 * SECOND);
        story.down(connection, CloseReason::Idle);
        if round == 49 {
            assert_eq!(story.mesh.peers[&id("z")].failures, 50);
            connection = story.dial_within(10 * SECOND);
            story.up(connection, "z", 1, Side::Dialed);
            story.pass(30 * SECOND);
            assert_eq!(story.mesh.peer(story.now, &id("z")).unwrap().dials, 0);
            story.down(connection, CloseReason::Idle);
            assert!(story.next_dial("z").unwrap() <= 100 * MS);
        }
    }
}

#[test]
fn dials_in_flight_are_bounded_and_the_rest_waits_without_a_busy_timer() {
    let mut story = Story::new();
    for port in 0..20 {
        story
            .mesh
            .member_up(story.now, &id(&format!("z{port}")), addr(port), boot(1));
    }
    story.pass(SECOND);
    let dials = story.dials();
    assert_eq!(dials.len(), 8);
    assert_eq!(story.mesh.poll_timeout(), None);
    story.down(dials[0].0, CloseReason::Refused);
    assert_eq!(story.dials().len(), 1);
}

#[test]
fn members_that_keep_failing_leave_half_of_the_slots_to_the_others() {
    let mut story = Story::new();
    for port in 0..20 {
        story
            .mesh
            .member_up(story.now, &id(&format!("z{port}")), addr(port), boot(1));
    }
    for _ in 0..100 {
        story.pass(SECOND);
        for (connection, _) in story.dials() {
            story.down(connection, CloseReason::Refused);
        }
    }
    story.pass(20 * SECOND);
    assert_eq!(story.mesh.counts().dialing, 4);
    story.actions();
    story.mesh.member_up(story.now, &id("y"), addr(99), boot(1));
    story.pass(100 * MS);
    assert_eq!(story.dials().last().unwrap().1, addr(99));
}

#[test]
fn the_lower_id_says_use_and_is_connected_at_once() {
    let mut story = Story::new();
    story.member("z", 1);
    let connection = story.dial_within(100 * MS);
    story.up(connection, "z", 1, Side::Dialed);
    assert_eq!(story.actions(), [Action::Use { connection }]);
    assert_eq!(
        story.events(),
        [Event::Connected {
            node: id("z"),
            connection
        }]
    );
}

#[test]
fn the_higher_id_is_connected_when_the_lower_one_said_use() {
    let mut story = Story::new();
    let connection = story.accept("a", 1);
    assert_eq!((story.actions(), story.events()), (vec![], vec![]));
    story.used(connection);
    story.used(connection);
    assert_eq!(
        story.events(),
        [Event::Connected {
            node: id("a"),
            connection
        }]
    );
}

#[test]
fn a_use_from_the_higher_id_means_nothing() {
    let mut story = Story::new();
    story.connect("z");
    let other = story.accept("z", 1);
    story.events();
    story.used(other);
    assert_eq!(story.events(), []);
}

#[test]
fn when_dials_cross_the_lower_id_moves_to_the_one_it_dialled() {
    let mut story = Story::new();
    story.member("z", 1);
    let dialled = story.dial_within(100 * MS);
    let accepted = story.accept("z", 1);
    story.actions();
    story.up(dialled, "z", 1, Side::Dialed);
    assert_eq!(
        story.actions(),
        [
            Action::Use {
                connection: dialled
            },
            Action::Drain {
                connection: accepted
            }
        ]
    );
    let node = id("z");
    assert_eq!(
        story.events(),
        [
            Event::Connected {
                node: node.clone(),
                connection: accepted
            },
            Event::Replaced {
                node,
                connection: dialled
            }
        ]
    );
}

#[test]
fn when_dials_cross_the_lower_id_drains_the_accepted_one_without_using_it() {
    let mut story = Story::new();
    let dialled = story.connect("z");
    let accepted = story.accept("z", 1);
    assert_eq!(
        story.actions(),
        [Action::Drain {
            connection: accepted
        }]
    );
    assert_eq!(story.events(), []);
    assert_eq!(story.mesh.current(&id("z")), Some(dialled));
}

#[test]
fn a_loser_is_closed_as_a_duplicate_after_the_drain_and_its_end_changes_nothing() {
    let mut story = Story::new();
    story.connect("z");
    let loser = story.accept("z", 1);
    story.actions();
    story.pass(999 * MS);
    assert_eq!(story.actions(), []);
    story.pass(MS);
    let code = CloseCode::Duplicate;
    assert_eq!(
        story.actions(),
        [Action::Close {
            connection: loser,
            code
        }]
    );
    story.down(loser, CloseReason::Local(code));
    assert_eq!((story.actions(), story.events()), (vec![], vec![]));
    assert_eq!(
        story.mesh.counts(),
        Counts {
            up: 1,
            connected: 1,
            ..Counts::default()
        }
    );
}

#[test]
fn the_higher_id_follows_a_use_on_another_connection_and_drains_the_first() {
    let mut story = Story::new();
    let first = story.connect("a");
    let second = story.accept("a", 1);
    assert_eq!(story.actions(), []);
    story.used(second);
    assert_eq!(story.actions(), [Action::Drain { connection: first }]);
    assert_eq!(
        story.events(),
        [Event::Replaced {
            node: id("a"),
            connection: second
        }]
    );
}

#[test]
fn a_use_that_was_overtaken_by_one_on_the_lower_ids_dial_means_nothing() {
    let mut story = Story::new();
    story.member("a", 1);
    let dialled = story.dial_within(5 * SECOND);
    story.up(dialled, "a", 1, Side::Dialed);
    let accepted = story.accept("a", 1);
    story.used(accepted);
    assert_eq!(
        story.actions(),
        [Action::Drain {
            connection: dialled
        }]
    );
    story.used(dialled);
    assert_eq!(story.mesh.current(&id("a")), Some(accepted));
}

#[test]
fn a_use_that_was_overtaken_by_one_on_the_lower_ids_dial_means_nothing_if_it_comes_up_late_either()
{
    let mut story = Story::new();
    story.member("a", 1);
    let dialled = story.dial_within(5 * SECOND);
    let accepted = story.accept("a", 1);
    story.used(accepted);
    story.actions();
    story.up(dialled, "a", 1, Side::Dialed);
    story.used(dialled);
    let connection = dialled;
    assert_eq!(story.actions(), [Action::Drain { connection }]);
    assert_eq!(story.mesh.current(&id("a")), Some(accepted));
    // Whoever is told so once the first is lost has no other.
    let mut story = Story::new();
    story.member("a", 1);
    let dialled = story.dial_within(5 * SECOND);
    let accepted = story.accept("a", 1);
    story.used(accepted);
    story.up(dialled, "a", 1, Side::Dialed);
    story.down(accepted, CloseReason::Idle);
    story.used(dialled);
    assert_eq!(story.mesh.current(&id("a")), Some(dialled));
}

#[test]
fn a_settled_connection_never_wins_against_a_peer_that_had_to_dial_again() {
    let mut story = Story::new();
    let ghost = story.connect("z");
    story.pass(3 * SECOND);
    let fresh = story.accept("z", 1);
    assert_eq!(
        story.actions(),
        [
            Action::Use { connection: fresh },
            Action::Drain { connection: ghost }
        ]
    );
    assert_eq!(
        story.events(),
        [Event::Replaced {
            node: id("z"),
            connection: fresh
        }]
    );
}

#[test]
fn another_life_wins_at_once_and_the_one_before_is_never_accepted_again() {
    let mut story = Story::new();
    let ghost = story.connect("z");
    let fresh = story.accept("z", 2);
    let code = CloseCode::Superseded;
    assert_eq!(
        story.actions(),
        [
            Action::Close {
                connection: ghost,
                code
            },
            Action::Use { connection: fresh }
        ]
    );
    assert_eq!(
        story.events(),
        [Event::Replaced {
            node: id("z"),
            connection: fresh
        }]
    );
    story.down(ghost, CloseReason::Local(code));
    let again = story.accept("z", 1);
    assert_eq!(
        story.actions(),
        [Action::Close {
            connection: again,
            code
        }]
    );
    assert_eq!(story.events(), [Event::SupersededBoot { node: id("z") }]);
    assert_eq!(story.mesh.current(&id("z")), Some(fresh));
    assert_eq!(story.mesh.counts().refused_total, 1);
}

#[test]
fn a_past_life_is_refused_also_while_nothing_is_connected() {
    let mut story = Story::new();
    story.connect("z");
    let fresh = story.accept("z", 2);
    story.down(fresh, CloseReason::Idle);
    story.events();
    story.accept("z", 1);
    assert_eq!(story.events(), [Event::SupersededBoot { node: id("z") }]);
}

#[test]
fn a_handshake_that_began_before_the_present_life_was_met_does_not_end_it() {
    for side in [Side::Accepted, Side::Dialed] {
        let mut story = Story::new();
        story.member("z", 1);
        let late = match side {
            Side::Accepted => story.mesh.allocate(),
            Side::Dialed => story.dial_within(SECOND),
        };
        // The life that began this handshake has ended; the next one was quicker.
        let fresh = story.accept("z", 2);
        story.actions();
        story.events();
        story.up(late, "z", 1, side);
        let code = CloseCode::Duplicate;
        let connection = late;
        assert_eq!(story.actions(), [Action::Close { connection, code }]);
        assert_eq!(story.events(), [], "{side:?}");
        assert_eq!(story.mesh.current(&id("z")), Some(fresh));
        // Whichever it was, a connection that begins now is of the life that is there now.
        let again = story.accept("z", 1);
        assert_eq!(story.mesh.current(&id("z")), Some(again), "{side:?}");
    }
}

#[test]
fn a_handshake_that_began_during_the_dial_which_met_the_present_life_does_not_end_it() {
    let mut story = Story::new();
    story.member("z", 2);
    let dial = story.dial_within(SECOND);
    let late = [story.mesh.allocate(), story.mesh.allocate()];
    story.up(dial, "z", 2, Side::Dialed);
    story.up(late[0], "z", 1, Side::Accepted);
    assert_eq!(story.mesh.current(&id("z")), Some(dial));
    // Nor once it is connected no more.
    story.down(dial, CloseReason::Idle);
    story.up(late[1], "z", 1, Side::Accepted);
    assert_eq!(story.mesh.current(&id("z")), None);
    let next = story.accept("z", 3);
    assert_eq!(story.mesh.current(&id("z")), Some(next));
}

#[test]
fn the_higher_id_stays_connected_for_its_users_while_a_new_life_waits_for_use() {
    let mut story = Story::new();
    story.connect("a");
    let fresh = story.accept("a", 2);
    assert_eq!(story.events(), []);
    story.used(fresh);
    assert_eq!(
        story.events(),
        [Event::Replaced {
            node: id("a"),
            connection: fresh
        }]
    );
}

#[test]
fn a_swap_that_fails_ends_in_one_disconnect() {
    let mut story = Story::new();
    let first = story.connect("a");
    let second = story.accept("a", 1);
    story.down(first, CloseReason::Reset);
    assert_eq!(story.events(), []);
    story.down(second, CloseReason::Idle);
    let (node, reason) = (id("a"), CloseReason::Idle);
    assert_eq!(story.events(), [Event::Disconnected { node, reason }]);
}

#[test]
fn a_second_process_with_this_nodes_identity_is_told_wherever_it_shows() {
    let mut story = Story::new();
    story.accept("m", 9);
    assert_eq!(story.events(), [Event::SupersededBoot { node: id("m") }]);
    let connection = story.connect("z");
    story.down(connection, CloseReason::Peer(CloseCode::Superseded));
    assert_eq!(story.events()[0], Event::SupersededBoot { node: id("m") });
}

#[test]
fn links_that_wait_for_use_are_bounded() {
    let mut story = Story::new();
    for _ in 0..MAX_LINKS {
        story.accept("a", 1);
    }
    let refused = story.accept("a", 1);
    let code = CloseCode::Overloaded;
    assert_eq!(
        story.actions(),
        [Action::Close {
            connection: refused,
            code
        }]
    );
}

#[test]
fn the_reason_of_the_end_decides_when_to_dial_again() {
    let tls = CloseReason::Tls {
        alert: 45,
        by_peer: true,
    };
    for (reason, least, most) in [
        (CloseReason::Idle, Duration::ZERO, 100 * MS),
        (CloseReason::Reset, Duration::ZERO, 200 * MS),
        (CloseReason::Refused, Duration::ZERO, 100 * MS),
        (
            CloseReason::Transport {
                code: 1,
                by_peer: true,
            },
            Duration::ZERO,
            100 * MS,
        ),
        (
            CloseReason::Io("no thread".to_owned()),
            Duration::ZERO,
            100 * MS,
        ),
        (
            CloseReason::Peer(CloseCode::Duplicate),
            Duration::ZERO,
            100 * MS,
        ),
        (
            CloseReason::Peer(CloseCode::Overloaded),
            Duration::ZERO,
            100 * MS,
        ),
        (
            CloseReason::Peer(CloseCode::Internal),
            Duration::ZERO,
            100 * MS,
        ),
        (
            CloseReason::Peer(CloseCode::Unknown(77)),
            Duration::ZERO,
            100 * MS,
        ),
        (
            CloseReason::Peer(CloseCode::AddressChanged),
            Duration::ZERO,
            200 * MS,
        ),
        (
            CloseReason::Peer(CloseCode::Shutdown),
            10 * SECOND,
            13 * SECOND,
        ),
        (
            CloseReason::Peer(CloseCode::Identity),
            10 * SECOND,
            13 * SECOND,
        ),
        (
            CloseReason::Local(CloseCode::Protocol),
            10 * SECOND,
            13 * SECOND,
        ),
        (
            CloseReason::WrongIdentity("n9".to_owned()),
            10 * SECOND,
            13 * SECOND,
        ),
        (tls, 10 * SECOND, 13 * SECOND),
    ] {
        let mut story = Story::new();
        let connection = story.connect("z");
        story.down(connection, reason.clone());
        let delay = story.next_dial("z").unwrap();
        assert!((least..=most).contains(&delay), "{delay:?} after {reason}");
    }
}

#[test]
fn a_peer_that_lost_its_memory_is_dialled_without_a_grace() {
    let mut story = Story::new();
    let connection = story.connect("a");
    story.down(connection, CloseReason::Reset);
    story.dial_within(200 * MS);
}

#[test]
fn a_peer_that_shut_down_is_dialled_when_membership_calls_it_alive_again() {
    let mut story = Story::new();
    let connection = story.connect("z");
    story.down(connection, CloseReason::Peer(CloseCode::Shutdown));
    story.pass(5 * SECOND);
    assert_eq!(story.dials(), []);
    story.member("z", 1);
    story.dial_within(100 * MS);
}

#[test]
fn after_a_shutdown_further_dials_stay_slow() {
    let mut story = Story::new();
    let connection = story.connect("z");
    story.down(connection, CloseReason::Peer(CloseCode::Shutdown));
    let connection = story.dial_within(13 * SECOND);
    story.down(connection, CloseReason::Refused);
    assert!(story.next_dial("z").unwrap() >= 10 * SECOND);
}

#[test]
fn a_dial_that_reached_this_node_is_never_repeated() {
    for code in [
        CloseReason::Local(CloseCode::SelfDial),
        CloseReason::Peer(CloseCode::SelfDial),
    ] {
        let mut story = Story::new();
        story.member("z", 1);
        let connection = story.dial_within(100 * MS);
        story.down(connection, code);
        assert_eq!(story.events(), [Event::SelfDial { addr: home("z") }]);
        story.member("z", 2);
        story.pass(60 * SECOND);
        assert_eq!(story.dials(), []);
    }
}

#[test]
fn whoever_waits_to_be_dialled_where_this_node_turns_out_to_be_is_not() {
    let mut story = Story::new();
    let own = addr(7);
    let round = story.mesh.join(story.now, vec!["s:1".to_owned()]);
    story.mesh.handle_resolved(story.now, "s:1", Ok(vec![own]));
    let (dial, at) = story.dials()[0];
    assert_eq!(at, own);
    // One is dead there, one only remembered, one a hint, and one has moved there and lives.
    story.member("x", 1);
    story.mesh.member_up(story.now, &id("x"), own, boot(1));
    story.mesh.member_up(story.now, &id("w"), own, boot(1));
    story.mesh.member_dead(story.now, &id("w"));
    story.mesh.member_remembered(story.now, &id("y"), own);
    story.mesh.handle_hint(story.now, &id("z"), own);
    assert!(
        story
            .mesh
            .peer(story.now, &id("y"))
            .unwrap()
            .next_dial
            .is_some()
    );
    story.down(dial, CloseReason::Local(CloseCode::SelfDial));
    story.pass(300 * SECOND);
    assert_eq!(story.dials(), []);
    assert_eq!(story.mesh.hints, 0, "nothing would ever dial that one");
    let over =
        |event: &Event| matches!(event, Event::JoinRoundOver { round: r, .. } if *r == round);
    assert!(story.events().iter().any(over));
    // Where it really is, it is dialled as ever.
    story
        .mesh
        .member_up(story.now, &id("y"), home("y"), boot(1));
    story.dial_within(SECOND);
}

#[test]
fn a_new_address_is_dialled_while_the_connection_to_the_old_one_lasts() {
    let mut story = Story::new();
    let old = story.connect("z");
    story.pass(SECOND);
    story.mesh.member_up(story.now, &id("z"), addr(9), boot(1));
    story.pass(200 * MS);
    let dials = story.dials();
    assert_eq!(dials[0].1, addr(9));
    story.mesh.handle_up(
        story.now,
        dials[0].0,
        &id("z"),
        boot(1),
        Side::Dialed,
        addr(9),
    );
    assert_eq!(
        story.actions(),
        [
            Action::Use {
                connection: dials[0].0
            },
            Action::Drain { connection: old }
        ]
    );
    assert_eq!(story.next_dial("z"), None);
}

#[test]
fn a_dial_to_an_address_that_changed_is_abandoned() {
    let mut story = Story::new();
    story.member("z", 1);
    let stale = story.dial_within(100 * MS);
    story.mesh.member_up(story.now, &id("z"), addr(9), boot(1));
    story.pass(200 * MS);
    let actions = story.actions();
    let code = CloseCode::AddressChanged;
    assert_eq!(
        actions[0],
        Action::Close {
            connection: stale,
            code
        }
    );
    assert!(matches!(actions[1], Action::Dial { addr: at, .. } if at == addr(9)));
    story.up(stale, "z", 1, Side::Dialed);
    assert_eq!(story.events(), [], "an abandoned dial came up");
    story.down(stale, CloseReason::Local(code));
    assert_eq!(story.mesh.counts().dialing, 1);
}

#[test]
fn the_side_that_was_dialled_leaves_an_address_change_to_the_dialler() {
    let mut story = Story::new();
    story.connect("a");
    story.mesh.member_up(story.now, &id("a"), addr(9), boot(1));
    story.pass(60 * SECOND);
    assert_eq!(story.dials(), []);
}

#[test]
fn another_life_in_a_record_is_verified_by_one_dial() {
    let mut story = Story::new();
    story.connect("z");
    story.pass(60 * SECOND);
    story.member("z", 2);
    let connection = story.dial_within(100 * MS);
    // It was the record that was wrong.
    story.up(connection, "z", 1, Side::Dialed);
    story.pass(60 * SECOND);
    assert_eq!(story.dials(), []);
}

#[test]
fn a_record_of_a_life_that_was_superseded_starts_nothing() {
    let mut story = Story::new();
    story.connect("z");
    story.accept("z", 2);
    story.member("z", 1);
    story.pass(60 * SECOND);
    assert_eq!(story.dials(), []);
}

#[test]
fn a_new_life_starts_with_a_clean_backoff() {
    let mut story = Story::new();
    story.member("z", 1);
    for _ in 0..20 {
        let connection = story.dial_within(10 * SECOND);
        story.down(connection, CloseReason::Refused);
    }
    story.member("z", 2);
    assert!(story.next_dial("z").unwrap() <= 100 * MS);
}

#[test]
fn a_dead_member_is_dialled_ever_more_slowly_and_a_left_or_forgotten_one_not_at_all() {
    let mut story = Story::new();
    story.member("z", 1);
    story.mesh.member_dead(story.now, &id("z"));
    for least in [1, 2, 4, 8, 16, 30, 30] {
        let next = story.next_dial("z").unwrap();
        assert!(
            least * SECOND <= next && next <= 2 * least * SECOND,
            "{next:?}"
        );
        let connection = story.dial_within(next);
        story.down(connection, CloseReason::Refused);
    }
    story.mesh.member_left(story.now, &id("z"));
    story.pass(300 * SECOND);
    assert_eq!(story.dials(), []);
    story.member("z", 1);
    let connection = story.dial_within(100 * MS);
    story.mesh.member_forgotten(story.now, &id("z"));
    assert!(
        story.mesh.peer(story.now, &id("z")).is_some(),
        "its dial is in flight"
    );
    story.down(connection, CloseReason::Refused);
    assert_eq!(story.mesh.peer(story.now, &id("z")), None);
}

#[test]
fn a_peer_that_died_while_connected_is_verified_by_a_new_handshake_until_it_is_alive() {
    for name in ["a", "z"] {
        let mut story = Story::new();
        let held = story.connect(name);
        story.pass(20 * SECOND);
        story.mesh.member_dead(story.now, &id(name));
        story.pass(SECOND);
        let first = story.dial_within(2 * SECOND);
        assert_eq!(story.mesh.current(&id(name)), Some(held));
        story.down(first, CloseReason::HandshakeTimeout(5 * SECOND));
        let second = story.dial_within(4 * SECOND);
        assert_eq!(story.mesh.current(&id(name)), Some(held));
        assert_eq!((story.actions(), story.events()), (vec![], vec![]));
        story.up(second, name, 1, Side::Dialed);
        story.used(second);
        assert_eq!(story.mesh.current(&id(name)), Some(second));
        assert!(story.next_dial(name).is_some(), "still dead");
        story.member(name, 1);
        story.actions();
        story.pass(300 * SECOND);
        assert_eq!(story.dials(), []);
    }
}

#[test]
fn a_death_that_is_refuted_at_once_is_not_verified() {
    let mut story = Story::new();
    story.connect("z");
    story.mesh.member_dead(story.now, &id("z"));
    story.member("z", 1);
    story.pass(300 * SECOND);
    assert_eq!(story.dials(), []);
}

#[test]
fn a_forgotten_peer_stays_known_for_as_long_as_it_is_connected() {
    let mut story = Story::new();
    let connection = story.connect("z");
    story.mesh.member_forgotten(story.now, &id("z"));
    assert_eq!(story.mesh.current(&id("z")), Some(connection));
    story.down(connection, CloseReason::Idle);
    assert_eq!(story.mesh.peer(story.now, &id("z")), None);
    assert_eq!(story.events().len(), 1);
}

#[test]
fn whom_a_connection_has_outlasted_is_dialled_although_connected_while_it_is_remembered() {
    let mut story = Story::new();
    let old = story.connect("z");
    story.mesh.member_dead(story.now, &id("z"));
    let verify = story.dial_within(3 * SECOND);
    story.down(verify, CloseReason::HandshakeTimeout(5 * SECOND));
    story.mesh.member_forgotten(story.now, &id("z"));
    assert_eq!(story.next_dial("z"), None);
    story.mesh.member_remembered(story.now, &id("z"), home("z"));
    let again = story.dial_within(10 * SECOND);
    story.up(again, "z", 1, Side::Dialed);
    assert_eq!(story.next_dial("z"), None, "its handshake brings it back");
    story.down(old, CloseReason::Local(CloseCode::Duplicate));
    assert_eq!(story.next_dial("z"), None);
    story.mesh.member_unremembered(&id("z"));
    assert_eq!(story.mesh.current(&id("z")), Some(again));
}

#[test]
fn a_hint_is_dialled_a_few_times_and_then_dropped() {
    let mut story = Story::new();
    story.mesh.handle_hint(story.now, &id("z"), home("z"));
    for _ in 0..HINT_DIALS {
        let connection = story.dial_within(SECOND);
        story.down(connection, CloseReason::Refused);
    }
    assert_eq!(story.mesh.peer(story.now, &id("z")), None);
    assert_eq!(story.mesh.hints, 0);
}

#[test]
fn who_is_remembered_is_dialled_soon_then_ever_more_slowly_whatever_the_order() {
    for name in ["a", "z"] {
        let mut story = Story::new();
        story
            .mesh
            .member_remembered(story.now, &id(name), home(name));
        let mut connection = story.dial_within(REMEMBER);
        for round in 0..100 {
            story.down(connection, CloseReason::Refused);
            let least = (SECOND * (1 << round.min(5))).min(30 * SECOND);
            assert!(story.next_dial(name).unwrap() >= least, "round {round}");
            connection = story.dial_within(38 * SECOND);
        }
        story.up(connection, name, 1, Side::Dialed);
        assert_eq!(story.next_dial(name), None, "it is connected");
        assert!(!story.mesh.peer(story.now, &id(name)).unwrap().is_member);
        story.down(connection, CloseReason::Idle);
        assert!(story.next_dial(name).unwrap() >= 30 * SECOND);
    }
}

#[test]
fn who_is_remembered_becomes_a_member_or_is_no_longer_remembered() {
    let mut story = Story::new();
    let remember = |story: &mut Story, name: &str| {
        story
            .mesh
            .member_remembered(story.now, &id(name), home(name));
    };
    for name in ["w", "x", "y", "z"] {
        remember(&mut story, name);
    }
    assert_eq!(story.mesh.remembered, 4);
    story.mesh.member_unremembered(&id("w"));
    story.mesh.member_left(story.now, &id("x"));
    story.member("y", 1);
    story.mesh.member_dead(story.now, &id("z"));
    assert_eq!((story.mesh.remembered, story.mesh.members), (1, 1));
    assert_eq!(story.mesh.peer(story.now, &id("w")), None);
    assert_eq!(story.mesh.peer(story.now, &id("x")), None);
    let connection = story.dial_within(100 * MS);
    story.up(connection, "y", 1, Side::Dialed);
    remember(&mut story, "y");
    assert!(story.mesh.peer(story.now, &id("y")).unwrap().is_member);
    story.mesh.member_forgotten(story.now, &id("y"));
    remember(&mut story, "y");
    story.down(connection, CloseReason::Idle);
    assert!(story.next_dial("y").unwrap() >= SECOND);
    assert_eq!((story.mesh.remembered, story.mesh.members), (2, 0));
}

#[test]
fn who_is_remembered_at_an_old_address_is_dialled_at_the_new_one_once_it_is_known() {
    let mut story = Story::new();
    story.mesh.member_remembered(story.now, &id("z"), addr(1));
    let old = story.dial_within(REMEMBER);
    story.member("z", 1);
    assert_eq!(
        story.actions(),
        [Action::Close {
            connection: old,
            code: CloseCode::AddressChanged
        }]
    );
    story.pass(SOON);
    assert_eq!(story.dials()[0].1, home("z"));
}

#[test]
fn thousands_who_are_gone_hold_up_neither_the_living_nor_those_hard_to_reach() {
    let mut story = Story::new();
    for port in 0..3_000 {
        let (node, addr) = (id(&format!("gone{port}")), addr(port + 200));
        story.mesh.member_remembered(story.now, &node, addr);
    }
    story.pass(SECOND);
    assert_eq!(story.dials().len(), 2, "a quarter of the slots");
    story.connect("a");
    story.member("y", 1);
    let mut tries = Vec::new();
    for _ in 0..5 {
        tries.push(story.dial_within(11 * SECOND));
        story.down(tries[tries.len() - 1], CloseReason::Refused);
    }
    story.member("z", 1);
    story.dial_within(100 * MS);
}

#[test]
fn a_hint_at_an_address_of_this_node_leaves_the_table_and_never_comes_back() {
    let mut story = Story::new();
    story.mesh.handle_hint(story.now, &id("z"), home("z"));
    let connection = story.dial_within(SECOND);
    story.down(connection, CloseReason::Peer(CloseCode::SelfDial));
    assert_eq!(story.mesh.peer(story.now, &id("z")), None);
    story.mesh.handle_hint(story.now, &id("y"), home("z"));
    assert_eq!((story.mesh.peers.len(), story.mesh.hints), (0, 0));
}

#[test]
fn a_dial_to_where_a_hint_had_a_member_ends_when_its_record_comes() {
    let mut story = Story::new();
    story.mesh.handle_hint(story.now, &id("z"), addr(1));
    let old = story.dial_within(SECOND);
    story.member("z", 1);
    let code = CloseCode::AddressChanged;
    let close = Action::Close {
        connection: old,
        code,
    };
    let mut actions = story.actions();
    assert_eq!(actions.remove(0), close);
    story.pass(SOON);
    actions.extend(story.actions());
    let is_home =
        |action: &Action| matches!(action, Action::Dial { addr, .. } if *addr == home("z"));
    assert!(actions.iter().any(is_home), "{actions:?}");
    assert_eq!(story.mesh.dial_target(old), None);
}

#[test]
fn a_hint_never_moves_a_member() {
    let mut story = Story::new();
    story.member("z", 1);
    story.mesh.handle_hint(story.now, &id("z"), addr(9));
    assert_eq!(
        story.mesh.peer(story.now, &id("z")).unwrap().addr,
        Some(home("z"))
    );
}

#[test]
fn tables_that_are_full_refuse_and_count() {
    let config = Config {
        max_hints: 1,
        max_members: 2,
        ..Config::default()
    };
    let mut story = Story::with(config);
    for name in ["h1", "h2", "h3"] {
        story.mesh.handle_hint(story.now, &id(name), addr(1));
    }
    for name in ["h1", "n1", "n2", "n1"] {
        story.mesh.member_up(story.now, &id(name), addr(2), boot(1));
    }
    assert_eq!(story.mesh.counts().dropped_total, 3);
    assert_eq!(story.mesh.peers(story.now).count(), 2);
    assert_eq!((story.mesh.hints, story.mesh.members), (0, 2));
}

#[test]
fn a_full_node_dials_nobody_and_refuses_all_but_a_new_connection_to_a_peer() {
    let mut story = Story::with(Config {
        max_connections: 1,
        ..Config::default()
    });
    let connection = story.connect("z");
    story.member("y", 1);
    story.pass(60 * SECOND);
    assert_eq!(story.dials(), []);
    let refused = story.accept("x", 1);
    let code = CloseCode::Overloaded;
    assert_eq!(
        story.actions(),
        [Action::Close {
            connection: refused,
            code
        }]
    );
    let again = story.accept("z", 2);
    assert_eq!(story.mesh.current(&id("z")), Some(again));
    story.down(connection, CloseReason::Reset);
    story.down(again, CloseReason::Reset);
    story.events();
    story.pass(SECOND);
    assert!(!story.dials().is_empty(), "there is room again");
}

#[test]
fn an_end_that_is_reported_twice_or_of_nothing_known_changes_nothing() {
    let mut story = Story::new();
    let connection = story.connect("z");
    story.down(ConnectionId(99), CloseReason::Idle);
    story.down(connection, CloseReason::Idle);
    let events = story.events();
    story.down(connection, CloseReason::Idle);
    assert_eq!((events.len(), story.events()), (1, vec![]));
}

// Seeds.

fn resolve(seed: &str) -> Action {
    Action::Resolve {
        seed: seed.to_owned(),
    }
}

fn over(round: u64, reached: usize, failed: &[&str]) -> Event {
    let failed = failed.iter().map(|&text| text.to_owned()).collect();
    Event::JoinRoundOver {
        round,
        reached,
        failed,
    }
}

impl Story {
    fn join(&mut self, seeds: &[&str]) -> u64 {
        self.mesh.join(
            self.now,
            seeds.iter().map(|&seed| seed.to_owned()).collect(),
        )
    }

    fn resolved(&mut self, seed: &str, addrs: &[SocketAddr]) {
        self.mesh
            .handle_resolved(self.now, seed, Ok(addrs.to_vec()));
    }
}

#[test]
fn a_join_without_seeds_is_over_at_once() {
    let mut story = Story::new();
    story.join(&[]);
    assert_eq!(story.events(), [over(1, 0, &[])]);
}

#[test]
fn a_seed_that_swallows_packets_delays_neither_the_others_nor_the_start() {
    let mut story = Story::new();
    story.join(&["hole:1", "good:1"]);
    assert_eq!(story.actions(), [resolve("good:1"), resolve("hole:1")]);
    story.resolved("hole:1", &[addr(1)]);
    story.resolved("good:1", &[home("a")]);
    let dials = story.dials();
    assert_eq!(dials.len(), 2);
    story.up(dials[1].0, "a", 1, Side::Dialed);
    let reached = Event::SeedReached {
        seed: "good:1".into(),
        node: id("a"),
        connection: dials[1].0,
    };
    assert_eq!(story.events(), [reached, over(1, 1, &[])]);
    story.down(dials[0].0, CloseReason::HandshakeTimeout(5 * SECOND));
    assert_eq!(story.events().len(), 1, "no second end of the round");
}

#[test]
fn a_round_ends_when_each_seed_has_failed_once() {
    let mut story = Story::new();
    story.join(&["a:1", "b:1"]);
    story
        .mesh
        .handle_resolved(story.now, "a:1", Err("no such host".to_owned()));
    assert_eq!(story.events().len(), 1);
    story.resolved("b:1", &[addr(1)]);
    let dial = story.dials()[0].0;
    story.down(dial, CloseReason::Refused);
    let failed = ["a:1: no such host", "b:1: port refused by the peer's host"];
    assert_eq!(story.events()[1], over(1, 0, &failed));
}

#[test]
fn a_seed_that_is_dropped_ends_its_join_and_nothing_that_still_comes_revives_it() {
    let mut story = Story::new();
    story.join(&["a:1", "b:1", "c:1"]);
    story.actions();
    story.resolved("b:1", &[addr(1), addr(2)]);
    let dial = story.dials()[0].0;
    let names = ["a:1", "b:1", "c:1", "never:1"].map(str::to_owned);
    story.mesh.forget_seeds(&names);
    let failed = ["a:1", "b:1", "c:1"].map(|seed| format!("{seed}: is no seed any more"));
    let failed = failed.each_ref().map(String::as_str);
    assert_eq!(story.events(), [over(1, 0, &failed)]);
    assert_eq!(story.mesh.seeds().count(), 0);
    // The answer and the end of the dial that were under way.
    story.resolved("a:1", &[addr(3)]);
    story.down(dial, CloseReason::Refused);
    assert_eq!(story.dials(), []);
    story.join(&["a:1"]);
    assert_eq!(story.actions(), [resolve("a:1")]);
}

#[test]
fn every_address_of_a_seed_is_tried_in_turn_and_the_name_resolved_again_on_every_try() {
    let mut story = Story::new();
    story.join(&["s:1"]);
    story.actions();
    story.resolved("s:1", &[addr(1), addr(2), addr(1)]);
    for port in [1, 2] {
        let dials = story.dials();
        assert_eq!(dials[0].1, addr(port));
        story.down(dials[0].0, CloseReason::Refused);
    }
    story.pass(100 * MS);
    assert_eq!(story.actions(), [resolve("s:1")]);
    assert_eq!(story.mesh.seeds().next().unwrap().failures, 1);
}

#[test]
fn the_other_addresses_of_a_seed_are_dialled_later_but_never_those_of_connected_peers() {
    let mut story = Story::new();
    let all = [addr(1), home("m"), home("y"), home("z"), addr(2)];
    story.join(&["s:1"]);
    story.actions();
    story.resolved("s:1", &all);
    // The address by which `x` is reached is not the one that it tells.
    let dial = story.dials()[0].0;
    story
        .mesh
        .handle_up(story.now, dial, &id("x"), boot(1), Side::Dialed, addr(1));
    story.member("x", 1);
    story.connect_accepted("y");
    story.events();
    story.pass(38 * SECOND);
    assert_eq!(story.actions(), [resolve("s:1")]);
    story.resolved("s:1", &all);
    let dials = story.dials();
    assert_eq!((dials.len(), dials[0].1), (1, home("m")));
    story.down(dials[0].0, CloseReason::Peer(CloseCode::SelfDial));
    let dials = story.dials();
    assert_eq!((dials.len(), dials[0].1), (1, home("z")));
    // A join that comes meanwhile ends with the next that answers.
    story.events();
    story.join(&["s:1"]);
    story.up(dials[0].0, "z", 1, Side::Dialed);
    assert!(story.events().contains(&over(2, 1, &[])));
    let dials = story.dials();
    assert_eq!((dials.len(), dials[0].1), (1, addr(2)));
    story.join(&["s:1"]);
    story.down(dials[0].0, CloseReason::Refused);
    assert!(story.events().contains(&over(3, 1, &[])));
    let view = story.mesh.seeds().next().unwrap();
    assert_eq!((view.state, view.failures), (SeedState::Waiting, 0));
    story.pass(38 * SECOND);
    assert_eq!(story.actions(), [resolve("s:1")]);
    story.pass(5 * SECOND);
    assert_eq!(story.events(), [], "still connected");
    assert_eq!(story.mesh.seeds().next().unwrap().failures, 0);
}

#[test]
fn a_name_that_is_not_resolved_in_time_fails_and_its_late_addresses_are_dialled() {
    let mut story = Story::new();
    story.join(&["s:1"]);
    story.pass(5 * SECOND);
    assert_eq!(
        story.events()[1],
        over(1, 0, &["s:1: not resolved within 5s"])
    );
    story.actions();
    story
        .mesh
        .handle_resolved(story.now, "s:1", Err("no such host".to_owned()));
    assert_eq!(story.events(), [], "it has failed already");
    story.resolved("s:1", &[addr(1)]);
    let dials = story.dials();
    assert_eq!(dials.len(), 1);
    story.resolved("s:1", &[addr(2)]);
    story.down(dials[0].0, CloseReason::Refused);
    story.resolved("s:1", &[addr(2)]);
    assert_eq!(story.dials(), [], "nobody waits for these");
}

#[test]
fn a_seed_that_is_this_node_fails_but_is_no_failure_of_the_join() {
    let mut story = Story::new();
    story.join(&["me:1"]);
    story.resolved("me:1", &[addr(1)]);
    let dial = story.dials()[0].0;
    story.down(dial, CloseReason::Peer(CloseCode::SelfDial));
    let failed = Event::SeedFailed {
        seed: "me:1".into(),
        reason: "is this node itself".into(),
    };
    assert_eq!(
        story.events(),
        [Event::SelfDial { addr: addr(1) }, failed, over(1, 0, &[])]
    );
    // The name may move to another node, so it is resolved again, slowly; the address is known.
    story.pass(29 * SECOND);
    assert_eq!(story.actions(), []);
    story.pass(10 * SECOND);
    assert_eq!(story.actions(), [resolve("me:1")]);
    story.resolved("me:1", &[addr(1)]);
    assert_eq!(story.dials(), []);
}

#[test]
fn a_seed_of_a_connected_peer_is_reached_without_a_dial() {
    let mut story = Story::new();
    let connection = story.connect("z");
    story.join(&["z:1"]);
    story.actions();
    story.resolved("z:1", &[home("z")]);
    assert_eq!(story.dials(), []);
    let reached = Event::SeedReached {
        seed: "z:1".into(),
        node: id("z"),
        connection,
    };
    assert_eq!(story.events(), [reached, over(1, 1, &[])]);
    story.join(&["z:1"]);
    assert_eq!(story.actions(), [], "known by now, not even resolved");
    assert_eq!(story.events()[1], over(2, 1, &[]));
    story.pass(300 * SECOND);
    assert_eq!((story.actions(), story.events()), (vec![], vec![]));
}

#[test]
fn seeds_are_tried_slowly_while_a_peer_is_connected_and_fast_once_none_is() {
    let mut story = Story::new();
    let connection = story.connect("z");
    story.pass(SECOND);
    story.join(&["s:1"]);
    story.resolved("s:1", &[addr(1)]);
    let dial = story.dials()[0].0;
    story.down(dial, CloseReason::Refused);
    story.pass(29 * SECOND);
    assert_eq!(story.actions(), []);
    story.down(connection, CloseReason::Idle);
    story.pass(100 * MS);
    assert!(story.actions().contains(&resolve("s:1")));
}

#[test]
fn a_seed_that_accepts_and_closes_at_once_is_dialled_with_a_growing_backoff() {
    let mut story = Story::new();
    story.join(&["s:1"]);
    let mut dials = 0;
    let end = story.now + 600 * SECOND;
    while story.now < end {
        for action in story.actions() {
            match action {
                Action::Resolve { seed } => story.resolved(&seed, &[home("z")]),
                Action::Dial { connection, .. } => {
                    dials += 1;
                    story.up(connection, "z", 1, Side::Dialed);
                    story.down(connection, CloseReason::Peer(CloseCode::Shutdown));
                }
                Action::Use { .. } | Action::Drain { .. } | Action::Close { .. } => {}
            }
        }
        story.events();
        if story.mesh.actions.is_empty() {
            let due = story.mesh.poll_timeout().unwrap() - story.now;
            assert!(due <= 10 * SECOND, "{due:?}");
            story.pass(due);
        }
    }
    assert!((60..240).contains(&dials), "{dials} dials in ten minutes");
    let connection = loop {
        match story.actions().pop() {
            Some(Action::Resolve { seed }) => story.resolved(&seed, &[home("z")]),
            Some(Action::Dial { connection, .. }) => break connection,
            _ => story.pass(SECOND),
        }
    };
    story.up(connection, "z", 1, Side::Dialed);
    story.pass(40 * SECOND);
    assert_eq!(story.mesh.seeds().next().unwrap().failures, 0);
    story.actions();
    story.down(connection, CloseReason::Idle);
    story.pass(100 * MS);
    assert!(story.actions().contains(&resolve("s:1")));
}

#[test]
fn a_node_without_peers_tries_its_seeds_without_end() {
    let mut story = Story::new();
    story.join(&["s:1"]);
    for _ in 0..100 {
        assert_eq!(story.actions(), [resolve("s:1")]);
        story
            .mesh
            .handle_resolved(story.now, "s:1", Err("no such host".to_owned()));
        let due = story.mesh.poll_timeout().unwrap() - story.now;
        assert!(due <= 10 * SECOND);
        story.pass(due);
    }
}

#[test]
fn joins_that_overlap_end_once_each() {
    let mut story = Story::new();
    let (first, second) = (story.join(&["a:1"]), story.join(&["a:1", "b:1"]));
    story
        .mesh
        .handle_resolved(story.now, "a:1", Err("no".to_owned()));
    story
        .mesh
        .handle_resolved(story.now, "b:1", Err("no".to_owned()));
    let rounds: Vec<Event> = story
        .events()
        .into_iter()
        .filter(|event| matches!(event, Event::JoinRoundOver { .. }))
        .collect();
    assert_eq!(
        rounds,
        [
            over(first, 0, &["a:1: no"]),
            over(second, 0, &["a:1: no", "b:1: no"])
        ]
    );
}

#[test]
fn when_the_table_of_seeds_is_full_a_failing_one_gives_way_else_the_new_one_is_refused() {
    let mut story = Story::with(Config {
        max_seeds: 1,
        ..Config::default()
    });
    story.join(&["a:1"]);
    story.join(&["b:1"]);
    assert_eq!(story.events()[1], over(2, 0, &["b:1: more than 1 seeds"]));
    story
        .mesh
        .handle_resolved(story.now, "a:1", Err("no".to_owned()));
    story.join(&["b:1"]);
    assert_eq!(
        story.mesh.seeds().map(|seed| seed.seed).collect::<Vec<_>>(),
        ["b:1"]
    );
}

#[test]
fn a_seed_never_gives_way_to_another_one_of_the_same_join() {
    let mut story = Story::with(Config {
        max_seeds: 1,
        ..Config::default()
    });
    story.join(&["a:1"]);
    story
        .mesh
        .handle_resolved(story.now, "a:1", Err("no".to_owned()));
    story.events();
    story.actions();
    story.join(&["a:1", "b:1"]);
    assert_eq!(story.actions(), [resolve("a:1")]);
    story
        .mesh
        .handle_resolved(story.now, "a:1", Err("no".to_owned()));
    assert_eq!(
        story.events().last(),
        Some(&over(2, 0, &["b:1: more than 1 seeds", "a:1: no"]))
    );
}

#[test]
fn a_node_that_leaves_dials_nobody_lets_nobody_in_and_keeps_no_join_waiting() {
    let mut story = Story::new();
    let kept = story.connect("z");
    story.member("y", 1);
    let dial = story.dial_within(100 * MS);
    story.member("a", 1);
    story.join(&["s:1"]);
    story.actions();
    story.mesh.stop(story.now);
    let code = CloseCode::Shutdown;
    assert_eq!(
        story.actions(),
        [Action::Close {
            connection: dial,
            code
        }]
    );
    assert_eq!(story.events(), [over(1, 0, &["s:1: this node is leaving"])]);
    let late = story.accept("x", 1);
    assert_eq!(
        story.actions(),
        [Action::Close {
            connection: late,
            code
        }]
    );
    story.join(&["s:1"]);
    assert_eq!(story.events(), [over(2, 0, &["s:1: this node is leaving"])]);
    story.resolved("s:1", &[addr(1)]);
    story.down(dial, CloseReason::Local(code));
    story.down(kept, CloseReason::Idle);
    story.pass(300 * SECOND);
    assert_eq!(story.actions(), []);
    assert_eq!(story.mesh.poll_timeout(), None);
    assert_eq!(story.events().len(), 1);
}
