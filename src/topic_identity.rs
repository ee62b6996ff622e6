//! Which topic it is: names are given again, ids are not.

use bincode::{Decode, Encode};

/// A cluster's id and a topic's, as the brokers tell them; empty where they do not.
#[derive(
    Debug, Clone, Default, PartialEq, Eq, Encode, Decode, serde::Serialize, serde::Deserialize,
)]
pub struct TopicIdentity {
    /// Id of the cluster.
    pub cluster: String,
    /// Id of the topic.
    pub topic: String,
}

impl TopicIdentity {
    /// True when both are known to be about different topics: then offsets of one mean nothing in the other. Brokers
    /// that tell no ids are believed.
    #[must_use]
    pub fn differs(&self, other: &Self) -> bool {
        let differ = |one: &str, other: &str| !one.is_empty() && !other.is_empty() && one != other;
        differ(&self.cluster, &other.cluster) || differ(&self.topic, &other.topic)
    }

    /// As the metadata of a committed offset: which topic the offset is about.
    #[must_use]
    pub fn encode(&self) -> String {
        if self.is_unknown() {
            return String::new();
        }
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Reads metadata; anything else than an identity says nothing.
    #[must_use]
    pub fn of_metadata(metadata: &str) -> Self {
        serde_json::from_str(metadata).unwrap_or_default()
    }

    /// True when neither id is known.
    #[must_use]
    pub fn is_unknown(&self) -> bool {
        self.cluster.is_empty() && self.topic.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ids_that_are_known_on_both_sides_tell_topics_apart() {
        let of = |cluster: &str, topic: &str| TopicIdentity {
            cluster: cluster.to_owned(),
            topic: topic.to_owned(),
        };
        assert!(!of("c", "t").differs(&of("c", "t")));
        assert!(of("c", "t").differs(&of("c", "u")));
        assert!(of("c", "t").differs(&of("d", "t")));
        assert!(!of("c", "t").differs(&of("c", "")));
        assert!(!of("", "").differs(&of("c", "t")));
    }

    #[test]
    fn metadata_says_which_topic_an_offset_is_about_or_nothing() {
        let topic = TopicIdentity { cluster: "c".to_owned(), topic: "t".to_owned() };
        assert_eq!(topic.encode(), r#"{"cluster":"c","topic":"t"}"#);
        assert_eq!(TopicIdentity::of_metadata(&topic.encode()), topic);
        assert_eq!(TopicIdentity::default().encode(), "");
        for nothing in ["", "note", "{}"] {
            assert!(TopicIdentity::of_metadata(nothing).is_unknown());
        }
    }
}
