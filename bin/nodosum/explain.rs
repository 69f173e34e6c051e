//! `nodosum members NODE --explain`: why the node believes of a member what it does.
//!
//! For people this is a story: where things stand, then everything that happened in the suspicion
//! in the order of time, and how it ended. For programs it is one object.

use std::fmt::Write as _;

use crate::{
    CALL_TIMEOUT,
    admin::{
        client::{call, unexpected},
        protocol::{CaseView, Command, ConnView, EvidenceView, ExplanationView, MomentView, Reply},
    },
    args::Members,
    exit::{Exit, Failure},
    output::{Format, clean, json_line, print, seconds},
};

pub(crate) fn run(args: &Members, node: &str) -> Result<Exit, Failure> {
    let command = Command::Explain {
        node: node.to_owned(),
    };
    let Reply::Explanation(view) = call(&args.read.admin, command, &[], CALL_TIMEOUT)? else {
        return Err(unexpected());
    };
    match args.read.output {
        Format::Json | Format::Jsonl => print(&json_line(&view)?)?,
        Format::Table | Format::Wide => print(&story(&view))?,
        Format::Tsv | Format::Name => {
            return Err(
                Failure::usage("an explanation is no row").hint("leave -o out, or use -o json")
            );
        }
    }
    Ok(Exit::Done)
}

fn story(view: &ExplanationView) -> String {
    let mut out = format!(
        "{} is {} since {}, incarnation {}\n",
        clean(&view.member),
        clean(&view.status),
        moment(&view.since),
        view.incarnation
    );
    if view.member == view.node {
        line(
            &mut out,
            "connection",
            "none: it is the node that was asked",
        );
    } else {
        line(&mut out, "connection", &connection(&view.connection));
    }
    evidence(&mut out, &view.evidence);
    let health = format!("{} (0 is healthy)", view.health_score);
    line(&mut out, "own health", &health);
    match &view.case {
        None => out.push_str("\nIt was never suspected, or too long ago.\n"),
        Some(case) => {
            let runs = case.verdict.is_none();
            let title = if runs {
                "The suspicion now"
            } else {
                "The last suspicion"
            };
            tell(&mut out, title, case, view);
            if let Some(at) = &view.dead_at {
                line(
                    &mut out,
                    &clock(at),
                    "it is dead unless it answers or refutes",
                );
            }
        }
    }
    if let Some(case) = &view.last_death {
        tell(&mut out, "Its last death", case, view);
    }
    out
}

fn line(out: &mut String, name: &str, value: &str) {
    let _ = writeln!(out, "  {name:<13}{}", clean(value));
}

/// The time of day; the date is that of the first line.
fn clock(at: &str) -> String {
    let time = at.split_once('T').map_or(at, |(_, time)| time);
    clean(time.trim_end_matches('Z').get(..12).unwrap_or(time))
}

fn moment(at: &str) -> String {
    clean(at)
}

fn connection(view: &ConnView) -> String {
    let mut text = view.state.clone();
    if view.state == "established" {
        let _ = write!(
            text,
            ", up for {}, last datagram {} ago, last ping {}, {} pings unanswered",
            seconds(view.up_seconds),
            seconds(view.idle_seconds),
            seconds(view.last_ping_seconds),
            view.ping_failures
        );
    }
    if let Some(error) = &view.last_error {
        let _ = write!(text, "; last error: {error}");
    }
    if view.next_dial_seconds.is_some() {
        let _ = write!(
            text,
            "; {} dials, next in {}",
            view.dials,
            seconds(view.next_dial_seconds)
        );
    }
    text
}

fn evidence(out: &mut String, evidence: &EvidenceView) {
    if let Some(at) = &evidence.last_answer {
        line(
            out,
            "last answer",
            &format!("{} over the connection", clock(at)),
        );
    }
    for doubt in &evidence.doubts {
        line(
            out,
            "doubt",
            &format!("{} {}", clock(&doubt.at), doubt.doubt),
        );
    }
}

/// One suspicion, told in the order of time.
fn tell(out: &mut String, title: &str, case: &CaseView, view: &ExplanationView) {
    let confirmations = match case.confirmations_wanted {
        0 => "so few need no confirmation".to_owned(),
        1 => "one confirmation makes it shortest".to_owned(),
        wanted => format!("{wanted} confirmations make it shortest"),
    };
    let _ = writeln!(
        out,
        "\n{title}: incarnation {}, {} members, {} to {}; {confirmations}",
        case.incarnation,
        case.members,
        seconds(Some(case.shortest_seconds)),
        seconds(Some(case.longest_seconds)),
    );
    let mut told: Vec<(&str, String)> = Vec::new();
    for accused in &case.accusations {
        let what = if accused.dead {
            "says it is dead"
        } else {
            "accuses it"
        };
        let mut text = format!("{} {what}", accused.by);
        if accused.by == view.node {
            text.push_str(" (this node)");
        } else if !accused.first_hand {
            text.push_str(", as others tell");
        }
        if accused.counted {
            text.push_str("; counts as a confirmation");
        }
        told.push((&accused.at, text));
    }
    for probe in &case.probes {
        let outcome = if probe.answered {
            "was answered"
        } else {
            "failed"
        };
        let mut text = format!("this node's probe {outcome} after {}", {
            seconds(Some(probe.took_seconds))
        });
        if probe.helpers > 0 {
            let _ = write!(
                text,
                "; helpers that tried: {}, of whom {} heard nothing either",
                probe.helpers, probe.nacks
            );
        }
        if probe.over_connection {
            text.push_str("; the connection was tried as well");
        }
        told.push((&probe.ended, text));
    }
    let moments = [
        (&view.when_suspected, "when it was suspected"),
        (&view.when_dead, "when it was declared dead"),
    ];
    for (moment, when) in moments {
        if let Some(MomentView {
            at,
            connection: then,
        }) = moment
            && at.as_str() >= case.began.as_str()
            && case
                .verdict
                .as_ref()
                .is_none_or(|end| at.as_str() <= end.at.as_str())
        {
            told.push((at, format!("the connection {when}: {}", connection(then))));
        }
    }
    told.sort_by_key(|(at, _)| *at);
    for (at, text) in told {
        line(out, &clock(at), &text);
    }
    let more = case.more_accusations + case.more_probes;
    if more > 0 {
        line(out, "", &format!("and {more} accusations and probes more"));
    }
    if case.vetoes > 0 {
        let vetoes = format!(
            "{} foreign claims of death were outweighed by an answer",
            case.vetoes
        );
        line(out, "", &vetoes);
    }
    let Some(verdict) = &case.verdict else {
        return;
    };
    let ending = match (verdict.ending.as_str(), &verdict.from) {
        ("dead", _) if verdict.fast => "dead, sooner because its ports refused".to_owned(),
        ("taken_over", Some(from)) => format!("dead by the word of {from}"),
        (ending, _) => ending.to_owned(),
    };
    let health = verdict.health_score;
    let verdict_line = format!("{ending}; own health {health}");
    line(out, &clock(&verdict.at), &verdict_line);
    evidence(out, &verdict.evidence);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::protocol::{AccusedView, DoubtView, ProbeView, VerdictView};

    fn at(second: u32) -> String {
        format!("2026-01-02T03:04:{second:02}.500Z")
    }

    fn view() -> ExplanationView {
        let conn = |state: &str| ConnView {
            state: state.to_owned(),
            last_error: (state == "down").then(|| "idle time-out".to_owned()),
            next_dial_seconds: (state == "down").then_some(12.0),
            dials: 2,
            up_seconds: Some(60.0),
            idle_seconds: Some(3.0),
            last_ping_seconds: Some(0.002),
            ping_failures: 2,
            ..ConnView::default()
        };
        let evidence = EvidenceView {
            last_answer: Some(at(1)),
            doubts: vec![DoubtView {
                doubt: "unanswered".to_owned(),
                at: at(4),
            }],
        };
        ExplanationView {
            schema: 1,
            node: "n1".to_owned(),
            member: "n3".to_owned(),
            status: "dead".to_owned(),
            since: at(9),
            incarnation: 4,
            health_score: 0,
            evidence: evidence.clone(),
            dead_at: None,
            case: Some(CaseView {
                incarnation: 4,
                began: at(5),
                members: 3,
                shortest_seconds: 3.0,
                longest_seconds: 18.0,
                confirmations_wanted: 1,
                accusations: vec![
                    AccusedView {
                        by: "n1".to_owned(),
                        at: at(5),
                        first_hand: true,
                        dead: false,
                        counted: false,
                    },
                    AccusedView {
                        by: "n2".to_owned(),
                        at: at(6),
                        first_hand: true,
                        dead: false,
                        counted: true,
                    },
                ],
                more_accusations: 0,
                probes: vec![ProbeView {
                    started: at(4),
                    ended: at(5),
                    took_seconds: 1.0,
                    helpers: 1,
                    nacks: 1,
                    over_connection: true,
                    answered: false,
                }],
                more_probes: 2,
                vetoes: 0,
                verdict: Some(VerdictView {
                    at: at(9),
                    ending: "dead".to_owned(),
                    fast: false,
                    from: None,
                    health_score: 1,
                    evidence,
                }),
            }),
            last_death: None,
            connection: conn("down"),
            when_suspected: Some(MomentView {
                at: at(5),
                connection: conn("established"),
            }),
            when_dead: None,
        }
    }

    #[test]
    fn a_suspicion_that_runs_says_when_it_ends() {
        let mut view = view();
        view.dead_at = Some(at(13));
        assert!(story(&view).contains("03:04:13.500 it is dead unless it answers or refutes\n"));
    }

    #[test]
    fn an_explanation_is_told_in_the_order_of_time() {
        assert_eq!(
            story(&view()),
            "n3 is dead since 2026-01-02T03:04:09.500Z, incarnation 4
  connection   down; last error: idle time-out; 2 dials, next in 12.0 s
  last answer  03:04:01.500 over the connection
  doubt        03:04:04.500 unanswered
  own health   0 (0 is healthy)

The last suspicion: incarnation 4, 3 members, 3.0 s to 18.0 s; one confirmation makes it shortest
  03:04:05.500 n1 accuses it (this node)
  03:04:05.500 this node's probe failed after 1.0 s; helpers that tried: 1, of whom 1 heard nothing either; the connection was tried as well
  03:04:05.500 the connection when it was suspected: established, up for 1m 00s, last datagram 3.0 s ago, last ping 2.00 ms, 2 pings unanswered
  03:04:06.500 n2 accuses it; counts as a confirmation
               and 2 accusations and probes more
  03:04:09.500 dead; own health 1
  last answer  03:04:01.500 over the connection
  doubt        03:04:04.500 unanswered
"
        );
    }

    #[test]
    fn who_was_never_suspected_has_no_story_and_names_are_harmless() {
        let mut view = view();
        view.case = None;
        view.status = "alive\u{1b}[31m".to_owned();
        let text = story(&view);
        assert!(
            text.contains("never suspected") && !text.contains('\u{1b}'),
            "{text}"
        );
    }
}
