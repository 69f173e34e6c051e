//! Asking: the probes of the failure detector, and the answers to those of others.
//!
//! Once in an interval the next member of the shuffled order is pinged. No answer within the
//! time-out: a few other members are asked to try, and a ping goes over the connection; no answer
//! from anywhere by the end of the interval: the probe has failed. One probe of a member runs at a
//! time. The time a probe is given grows with this node's own bad health.
//!
//! Out of turn a member is probed when others accuse it, when somebody knows it to be alive that was
//! gone by hearsay, when it may have lost its address to another, and when its connection raised a
//! doubt. The last two ask in all ways at once. If its ports refuse, no helpers are asked where others
//! can confirm, since their own connections tell them the same, and the probe ends as soon as
//! each way had the time that it has in an ordinary probe. Probes out of turn are limited in number
//! and, where others can provoke them, to one an interval.
//!
//! A member that has refuted suspicions lately, up to four, gets as many further probes, one right
//! after the other, before it is suspected again: who loses most of what it sends would else be
//! suspected and refute it every few seconds, for ever, and everybody would hear of it (the idea of
//! route flap damping, RFC 2439; but here only an accusation of this node's own has to wait; who
//! accuses others wrongly all the time is damped in `verdict`). If its ports refuse, it does not.
//!
//! A helper pings the address of its own record of the target, never one that it was told, passes
//! an answer on and says after 80 % of the time-out that it has none: whoever asked then knows that
//! the helper is well, and so is the way to it.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    time::{Duration, Instant},
};

use crate::node_id::NodeId;

use super::{
    Action, Swim,
    explain::ProbeReport,
    members::{Member, Standing},
    message::Body,
    probe::{MAX_CHECKS, MAX_RELAYS, Probe, Purpose, Relay, Way},
    timer::Timer,
};

/// How many probe intervals without another it takes to forget that a member refuted a suspicion, or
/// that one of its own accusations was refuted: a minute of the `lan` profile.
pub(super) const REFUTATION_MEMORY: u32 = 60;

impl Swim {
    pub(super) fn on_body(
        &mut self,
        now: Instant,
        from: &NodeId,
        reply_to: SocketAddr,
        body: Body,
    ) {
        match body {
            Body::Ping { seq, target } if target == self.id => {
                self.send(from, reply_to, &Body::Ack { seq });
            }
            Body::Ping { .. } => self.counters.misdirected += 1,
            Body::PingReq { seq, target } => self.on_ping_req(now, from, reply_to, seq, target),
            Body::Ack { seq } => self.on_ack(now, from, seq),
            Body::Nack { seq } => {
                if !self.probes.nack(seq, from) {
                    self.counters.stray_answers += 1;
                }
            }
            Body::Gossip => {}
        }
    }

    fn on_ping_req(
        &mut self,
        now: Instant,
        from: &NodeId,
        reply_to: SocketAddr,
        seq: u32,
        target: NodeId,
    ) {
        if target == self.id {
            self.send(from, reply_to, &Body::Ack { seq });
            return;
        }
        let addr = self
            .members
            .get(&target)
            .map(|member| member.record.record.gossip_addr);
        let full = self.probes.relays.len() >= MAX_RELAYS;
        self.counters.relays_refused += u64::from(full);
        let Some(addr) = addr.filter(|_| !full) else {
            // We cannot try, yet we are well, and that is what a nack says.
            if self.config.rules.nacks {
                self.send(from, reply_to, &Body::Nack { seq });
            }
            return;
        };
        let own_seq = self.probes.seq();
        let relay = Relay {
            target: target.clone(),
            requester: from.clone(),
            requester_addr: reply_to,
            seq,
        };
        self.probes.relays.insert(own_seq, relay);
        // At 80 % of the time-out, so that the nack arrives while it is still waited for.
        if self.config.rules.nacks {
            self.timers.set(
                Timer::RelayNack(own_seq),
                now + self.config.probe_timeout * 4 / 5,
            );
        }
        self.timers
            .set(Timer::RelayEnd(own_seq), now + self.config.probe_interval);
        self.send(
            &target.clone(),
            addr,
            &Body::Ping {
                seq: own_seq,
                target,
            },
        );
    }

    fn on_ack(&mut self, now: Instant, from: &NodeId, seq: u32) {
        match self.probes.way(seq, from) {
            Some(Way::Direct) => {
                self.counters.probes_direct += 1;
                self.time_probe(now, seq);
                self.on_answered(now, seq);
                return;
            }
            Some(Way::Indirect) => {
                self.counters.probes_indirect += 1;
                self.time_probe(now, seq);
                self.on_answered(now, seq);
                return;
            }
            None => {}
        }
        if self
            .probes
            .relays
            .get(&seq)
            .is_none_or(|relay| relay.target != *from)
        {
            self.counters.stray_answers += 1;
            return;
        }
        if let Some(relay) = self.end_relay(seq) {
            self.send(
                &relay.requester,
                relay.requester_addr,
                &Body::Ack { seq: relay.seq },
            );
        }
    }

    pub(super) fn end_relay(&mut self, seq: u32) -> Option<Relay> {
        self.timers.cancel(&Timer::RelayNack(seq));
        self.timers.cancel(&Timer::RelayEnd(seq));
        self.probes.relays.remove(&seq)
    }

    pub(super) fn on_probe_turn(&mut self, now: Instant) {
        self.timers
            .set(Timer::Probe, now + self.config.probe_interval);
        // A probe that a low health score has lengthened takes the place of the next ones.
        if self.probes.count(Purpose::Turn) > 0 {
            return;
        }
        let probes = &self.probes;
        let target = self.members.next_to_probe(&mut self.rng, |node, member| {
            member.is_live() && !probes.is_probing(node)
        });
        if let Some(target) = target {
            self.start_probe(now, target, Purpose::Turn);
        } else if self.members.live() <= 1 {
            // With nobody left to answer, nothing else would ever end an unwell time.
            self.awareness.improve();
        }
    }

    pub(super) fn on_check(&mut self, now: Instant, node: NodeId) {
        let Some(member) = self.members.get(&node) else {
            return;
        };
        let incarnation = member.incarnation();
        let unsettled = member.rare().is_some_and(|rare| rare.unsettled);
        let (wanted, ask_again) = match &member.standing {
            Standing::Suspect(suspicion) => (true, suspicion.own_probe_failed()),
            Standing::Dead { .. } => (member.hearsay, false),
            Standing::Alive => (unsettled || member.is_on_trial(), false),
            Standing::Left => (false, false),
        };
        if ask_again {
            // The shortest wait is over, and too few have confirmed. Whoever knows better answers.
            self.accuse(now, node.clone(), incarnation);
        }
        if wanted && unsettled {
            self.ask_at_once(now, &node);
        } else if wanted && !self.probes.is_probing(&node) && self.may_check(now, &node) {
            self.start_probe(now, node, Purpose::Check);
        }
    }

    /// Whether there is room for one more probe out of turn; if not, the check comes again soon.
    fn may_check(&mut self, now: Instant, node: &NodeId) -> bool {
        if self.probes.count(Purpose::Check) < MAX_CHECKS {
            return true;
        }
        let again = self
            .rng
            .between(self.config.probe_timeout, self.config.probe_interval);
        self.timers.set(Timer::Check(node.clone()), now + again);
        false
    }

    /// Looks at a member at `at`, unless that is planned for earlier.
    pub(super) fn check_by(&mut self, at: Instant, node: &NodeId) {
        let check = Timer::Check(node.clone());
        if self.timers.due(&check).is_none_or(|due| due > at) {
            self.timers.set(check, at);
        }
    }

    /// Something makes it doubtful that a member is there: it is asked in every way at once, but once an
    /// interval at most, whoever provokes it.
    pub(super) fn ask_soon(&mut self, now: Instant, node: &NodeId) {
        let pause = self.config.probe_interval;
        let Some(member) = self.members.get_mut(node) else {
            return;
        };
        let rare = member.rare_mut();
        rare.unsettled = true;
        let free_at = rare.hastened.map(|at| at + pause);
        self.check_by(free_at.map_or(now, |at| at.max(now)), node);
    }

    /// Asks a doubtful member in every way at once. A probe of it that runs is made to.
    pub(super) fn ask_at_once(&mut self, now: Instant, node: &NodeId) {
        if self.probes.of(node).is_none() {
            if !self.may_check(now, node) {
                return;
            }
            self.start_probe(now, node.clone(), Purpose::Check);
        }
        let (Some(member), Some(seq)) = (self.members.get_mut(node), self.probes.of(node)) else {
            return;
        };
        let rare = member.rare_mut();
        rare.hastened = Some(now);
        let refused = rare.refused;
        self.ask_others(seq);
        // Nobody is there to be slow, so the time that every way needs is enough.
        let end = now + self.scaled(self.config.hasty_probe());
        if let Some(probe) = self
            .probes
            .own
            .get_mut(&seq)
            .filter(|p| refused && end < p.end)
        {
            probe.end = end;
            self.timers.set(Timer::ProbeEnd(seq), end);
        }
    }

    /// `time`, longer while this node itself is unwell.
    fn scaled(&self, time: Duration) -> Duration {
        if self.config.rules.lha_probe {
            self.awareness.scale(time)
        } else {
            time
        }
    }

    fn start_probe(&mut self, now: Instant, target: NodeId, purpose: Purpose) {
        let Some(member) = self.members.get(&target) else {
            return;
        };
        let (addr, incarnation) = (member.record.record.gossip_addr, member.incarnation());
        let seq = self.probes.seq();
        let end = now + self.scaled(self.config.probe_interval);
        let probe = Probe {
            target: target.clone(),
            incarnation,
            purpose,
            started: now,
            end,
            asked_others: false,
            helpers: BTreeSet::new(),
            nacks: BTreeSet::new(),
        };
        self.probes.own.insert(seq, probe);
        self.timers
            .set(Timer::ProbeDirect(seq), now + self.config.probe_timeout);
        self.timers.set(Timer::ProbeEnd(seq), end);
        self.send(&target.clone(), addr, &Body::Ping { seq, target });
    }

    /// Asks a few others to try, and asks over the connection.
    pub(super) fn ask_others(&mut self, seq: u32) {
        let Some(probe) = self.probes.own.get_mut(&seq).filter(|p| !p.asked_others) else {
            return;
        };
        probe.asked_others = true;
        self.timers.cancel(&Timer::ProbeDirect(seq));
        let target = probe.target.clone();
        // That the ports refuse, the other members' own connections tell them as well: they will
        // confirm it or not, and to have some of them ask once more for this node tells nothing new.
        let is_refused = self.members.get(&target).is_some_and(Member::is_refused);
        let others_confirm = self.config.confirmations(self.members.live()) > 0;
        let wanted = if is_refused && others_confirm {
            0
        } else {
            self.config.indirect_probes
        };
        let helpers = self.members.choose(wanted, &mut self.rng, |node, member| {
            *node != target && matches!(member.standing, Standing::Alive)
        });
        probe.helpers = helpers.iter().cloned().collect();
        for helper in helpers {
            let Some(member) = self.members.get(&helper) else {
                continue;
            };
            let addr = member.record.record.gossip_addr;
            self.send(
                &helper,
                addr,
                &Body::PingReq {
                    seq,
                    target: target.clone(),
                },
            );
        }
        if self.config.rules.connection_pings {
            self.actions
                .push_back(Action::PingOverConnection { node: target, seq });
        }
    }

    /// Notes how long a probe took that is answered.
    pub(super) fn time_probe(&mut self, now: Instant, seq: u32) {
        if let Some(probe) = self.probes.own.get(&seq) {
            let took = now.saturating_duration_since(probe.started);
            self.counters.probe_times.add(took);
        }
    }

    pub(super) fn on_answered(&mut self, now: Instant, seq: u32) {
        let Some(probe) = self.end_probe(seq) else {
            return;
        };
        self.awareness.improve();
        self.report(now, &probe, true);
        self.settle(&probe.target);
        let Some(member) = self.members.get(&probe.target) else {
            return;
        };
        match &member.standing {
            Standing::Suspect(_) => self.on_vindicated(now, &probe.target),
            Standing::Dead { .. } if member.hearsay => self.on_back(now, &probe.target),
            Standing::Dead { .. } | Standing::Alive | Standing::Left => {}
        }
    }

    /// A suspect lives, as far as this node can see, but only it can convince the others.
    pub(super) fn on_vindicated(&mut self, now: Instant, node: &NodeId) {
        let Some(member) = self.members.get_mut(node) else {
            return;
        };
        let Standing::Suspect(suspicion) = &mut member.standing else {
            return;
        };
        suspicion.answered();
        let interval = self.config.probe_interval;
        let again = now + self.rng.between(interval * 2, interval * 4);
        // The wait is longer again if it had been cut. If it is over nonetheless, the accused has
        // not refuted, and the next look at it decides, not one as soon as a ping can be answered.
        let deadline = Some(suspicion.deadline()).filter(|at| *at > now);
        if deadline.is_none() && self.config.rules.check_suspects {
            // It answers and does not refute: maybe it knows nothing of this node any more, and so
            // takes none of its gossip. A sync tells it both who asks and what is said of it.
            self.actions.push_back(Action::Sync { with: node.clone() });
        }
        self.timers
            .set(Timer::Suspicion(node.clone()), deadline.unwrap_or(again));
        if self.config.rules.check_suspects {
            self.timers.set(Timer::Check(node.clone()), again);
        }
    }

    pub(super) fn on_probe_failed(&mut self, now: Instant, seq: u32) {
        let Some(probe) = self.end_probe(seq) else {
            return;
        };
        self.counters.probes_failed += 1;
        let asked = probe.helpers.len();
        let silent = if asked == 0 || !self.config.rules.nacks {
            1
        } else {
            asked - probe.nacks.len()
        };
        let node = probe.target.clone();
        let patience = self.config.rules.patience;
        let memory = self.config.probe_interval * REFUTATION_MEMORY;
        let is_tried_again = patience
            && self.members.get_mut(&node).is_some_and(|member| {
                member.incarnation() == probe.incarnation
                    && matches!(member.standing, Standing::Alive)
                    && member.has_another_try(now, memory)
            });
        // That one who is dead for others does not answer says nothing of this node's own health; nor
        // does one on trial whom nobody else could be asked about, and each of whose probes would else
        // lengthen the next.
        let tells_of_us = asked > 0 || !is_tried_again;
        if tells_of_us && self.members.get(&node).is_none_or(Member::is_live) {
            self.awareness
                .worsen(u32::try_from(silent).unwrap_or(u32::MAX));
        }
        log::debug!(target: "swim", node:% = node, asked, nacks = probe.nacks.len(),
            health_score = self.awareness.score(); "probe failed");
        if is_tried_again {
            self.check_by(now, &node);
            return;
        }
        let Some(member) = self.members.get(&node) else {
            return;
        };
        let incarnation = member.incarnation();
        if incarnation != probe.incarnation {
            // It says nothing of this incarnation, and who was in doubt meanwhile was not asked.
            if self.config.rules.check_suspects {
                self.check_by(now, &node);
            }
            return;
        }
        let news = match &member.standing {
            Standing::Alive => {
                self.suspect(now, &node, self.id.clone(), true);
                true
            }
            Standing::Suspect(_) => self.note_accusation(now, &node, &self.id.clone(), true, false),
            Standing::Dead { .. } => {
                // It was dead by hearsay, and a forced leave waited for this node to see for itself.
                self.force_out_if_asked(now, &node);
                return;
            }
            Standing::Left => return,
        };
        self.report(now, &probe, false);
        if news {
            self.accuse(now, node.clone(), incarnation);
        }
        let Some(member) = self.members.get_mut(&node) else {
            return;
        };
        let Standing::Suspect(suspicion) = &mut member.standing else {
            return;
        };
        suspicion.probe_failed();
        let (deadline, next_look) = (suspicion.deadline(), suspicion.next_look(now));
        let second = suspicion.wants_second_probe();
        if deadline <= now {
            self.die(now, &node);
            return;
        }
        self.timers.set(Timer::Suspicion(node.clone()), deadline);
        if second {
            self.ask_at_once(now, &node);
        }
        if self.config.rules.check_suspects {
            self.timers.set(Timer::Check(node), next_look);
        }
    }

    /// Writes a probe of a suspect that has ended into its case.
    fn report(&mut self, now: Instant, probe: &Probe, answered: bool) {
        if let Some(case) = self.cases.running(&probe.target) {
            case.probe(ProbeReport {
                started: probe.started,
                ended: now,
                helpers: probe.helpers.len(),
                nacks: probe.nacks.len(),
                over_connection: probe.asked_others && self.config.rules.connection_pings,
                answered,
            });
        }
    }

    pub(super) fn end_probe(&mut self, seq: u32) -> Option<Probe> {
        self.timers.cancel(&Timer::ProbeDirect(seq));
        self.timers.cancel(&Timer::ProbeEnd(seq));
        self.probes.own.remove(&seq)
    }

    pub(super) fn abandon_probes_of(&mut self, node: &NodeId) {
        if let Some(seq) = self.probes.of(node) {
            self.end_probe(seq);
            self.counters.probes_abandoned += 1;
        }
    }
}
