//! Stories of the membership core, as transcripts. Each is played from several seeds.

#[path = "support/transcript.rs"]
mod transcript;

/// Enough that an outcome does not rest on one lucky order of events.
const SEEDS: u64 = 12;

macro_rules! stories {
    ($($name:ident)*) => {
        $(
            #[test]
            fn $name() {
                let file = concat!(stringify!($name), ".txt");
                let text = include_str!(concat!("scenarios/swim/", stringify!($name), ".txt"));
                (0..SEEDS).for_each(|seed| transcript::play(file, text, seed));
            }
        )*

        #[test]
        fn every_transcript_is_played() {
            let played = [$(concat!(stringify!($name), ".txt")),*];
            let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/scenarios/swim");
            for entry in std::fs::read_dir(directory).unwrap() {
                let name = entry.unwrap().file_name().into_string().unwrap();
                assert!(played.contains(&name.as_str()), "{name} is not played");
            }
        }
    };
}

stories! {
    nodes_that_join_one_seed_see_each_other
    a_crash_is_known_everywhere_within_the_bound
    a_crash_among_ten_is_confirmed_and_known_soon
    a_suspected_member_refutes_and_lives
    an_indirect_probe_rescues_one_way_loss
    a_connection_rescues_lost_datagrams
    one_way_loss_to_one_member_kills_nobody
    a_leave_is_known_within_a_few_gossip_intervals
    a_partition_is_seen_on_both_sides_and_heals
    a_restart_with_the_same_name_is_a_new_life
    a_member_that_moves_is_found_at_its_new_address
    a_stale_record_resurrects_nobody
    statements_about_strangers_and_other_incarnations_are_ignored
    nobody_leaves_by_a_forged_statement
    a_dead_member_can_be_forced_out
    a_liar_alone_kills_nobody
    a_process_that_stood_still_accuses_nobody
    twenty_five_nodes_converge
    loss_of_five_percent_kills_nobody
    a_joiner_is_not_misled_about_the_living
    tombstones_are_forgotten_and_do_not_circulate
    a_crash_whose_ports_refuse_is_known_in_three_seconds
    a_refused_crash_among_two_and_three_takes_two_probes
    a_process_that_stands_still_keeps_its_whole_time
    an_answer_over_the_connection_outweighs_a_foreign_verdict
    connections_alone_keep_a_silent_path_from_killing
    a_forged_refusal_costs_a_probe
    a_forced_leave_reaches_those_who_were_away
    a_new_name_at_an_old_address_is_another_member
    the_model_of_memberlist_takes_a_verdict_over
    the_model_without_lifeguard_still_finds_a_crash
}
