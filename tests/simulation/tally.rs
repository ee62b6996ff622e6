//! What happened in a run: a simulator in which nothing goes wrong proves nothing.

macro_rules! tally {
    ($($(#[$doc:meta])* $name:ident,)+) => {
        /// Counts.
        #[derive(Debug, Default, Clone, PartialEq, Eq)]
        pub struct Tally {
            $($(#[$doc])* pub $name: u64,)+
        }

        impl Tally {
            pub fn add(&mut self, other: &Self) {
                $(self.$name += other.$name;)+
            }
        }
    };
}

tally! {
    messages,
    instances,
    crashes,
    power_cuts,
    crashes_while_opening,
    clean_stops,
    /// Processes that stood still until they were no member any more, or not so long.
    freezes,
    rebalances,
    /// Partitions that were asked back while their owner was well.
    asked_back,
    /// Partitions that were given to another instance than before.
    changed_hands,
    /// Members that the group counted as dead.
    expired,
    /// Partitions that were lost without being given back.
    partitions_lost,
    commits_refused,
    commits_lost,
    committed_unknown,
    repeated,
    store_failures,
    store_writes,
    /// How often the store lost power, rows that it lost, and how often an instance delivered again because of that.
    store_losses,
    rows_lost_by_store,
    /// How often that came while no process looked.
    losses_unwatched,
    delivered_again,
    /// Spells in which the store sheds load, and in which it refuses all measurements; good messages that became dead
    /// letters because of these.
    overloads,
    tables_changed,
    given_up,
    /// Spells in which one of the store's sets of replicas is away; rows that left memory because of that, records that were
    /// moved in the log, and how often what was set aside was read again because the replicas were there.
    half_away,
    rows_set_aside,
    records_moved,
    came_back,
    /// Outages of three days.
    outages,
    dead_letters,
    disks_lost,
    disks_rolled_back,
    disks_rotten,
    missing_at_start,
    fetched_again,
    /// Instances that never came back.
    machines_lost,
    takeovers_begun,
    taken_over,
    /// Instances whose loss the oracle has looked at, in runs of the check.
    losses_checked,
    recovered_twice,
    /// Topics that were deleted and created again, by when instances noticed, and by when somebody accepted that.
    recreated,
    recreations_noticed,
    recreations_accepted,
    /// Offsets that were committed for a deleted topic after it was created again.
    commits_stale,
    /// Messages of deleted topics, or that retention took, which were reported as lost.
    reported_lost,
    /// How often retention took messages, and a partition lost its end.
    retained,
    ends_lost,
    /// Gaps that instances went on behind, by their kinds.
    retention_gaps,
    truncated_gaps,
    /// Beginnings with Kafka's oldest message where others had consumed, and retention had taken some meanwhile.
    retention_unseen,
}
