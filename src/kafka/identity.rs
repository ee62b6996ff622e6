//! What the safe API of the client library does not tell or do: the leader epoch of a message and of a committed offset,
//! the id of a topic, how a commit ended that nobody waits for, one that is waited for no longer than a given time,
//! tokens with extensions, what we may do with a topic or a group.
#![expect(
    unsafe_code,
    reason = "librdkafka has these in C only; everything is copied before it returns"
)]

use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_char};
use std::ptr;
use std::time::Duration;

use rdkafka::TopicPartitionList;
use rdkafka::bindings as rdsys;
use rdkafka::client::{Client, ClientContext};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::BorrowedMessage;

use crate::topic_identity::TopicIdentity;

/// Epoch of the partition's leader when the message was fetched; -1 when unknown.
pub(super) fn leader_epoch(message: &BorrowedMessage<'_>) -> i32 {
    // SAFETY: the message borrows the native one, which lives as long.
    unsafe { rdsys::rd_kafka_message_leader_epoch(message.ptr()) }
}

/// Has a commit say from which leader the message before `list`'s offset of the partition came, so that a member that
/// begins there notices when Kafka has another message by then.
pub(super) fn set_leader_epoch(
    list: &mut TopicPartitionList,
    topic: &str,
    partition: i32,
    leader_epoch: i32,
) {
    if let Some(element) = native_element(list, topic, partition) {
        // SAFETY: the element belongs to the list, which is borrowed here for ourselves alone.
        unsafe { rdsys::rd_kafka_topic_partition_set_leader_epoch(element, leader_epoch) }
    }
}

/// What a commit said of the leader that the message before the offset of the partition came from; -1 for nothing.
pub(super) fn committed_leader_epoch(
    list: &TopicPartitionList,
    topic: &str,
    partition: i32,
) -> i32 {
    native_element(list, topic, partition).map_or(-1, |element| {
        // SAFETY: the element belongs to the list, which is borrowed.
        unsafe { rdsys::rd_kafka_topic_partition_get_leader_epoch(element) }
    })
}

fn native_element(
    list: &TopicPartitionList,
    topic: &str,
    partition: i32,
) -> Option<*mut rdsys::rd_kafka_topic_partition_t> {
    let topic = CString::new(topic).ok()?;
    // SAFETY: the list and the name outlive the call, which only reads them.
    let element =
        unsafe { rdsys::rd_kafka_topic_partition_list_find(list.ptr(), topic.as_ptr(), partition) };
    (!element.is_null()).then_some(element)
}

/// How long brokers are asked for a topic's id. Some never answer, and each of those costs as much.
pub(super) const TOPIC_WAIT: Duration = Duration::from_secs(1);

/// Which topic this is; ids that the brokers do not tell in time are empty.
pub(super) fn of_topic<C: ClientContext>(
    client: &Client<C>,
    topic: &str,
    timeout: Duration,
) -> TopicIdentity {
    TopicIdentity {
        cluster: client.fetch_cluster_id(timeout).unwrap_or_default(),
        topic: topic_id(client, topic, timeout).unwrap_or_default(),
    }
}

/// Commits `offsets` for the client's group, and waits for the answer without serving anything else.
///
/// # Errors
/// The brokers refuse, or do not answer in time: then they may have committed, and nobody is told.
pub(super) fn commit_within<C: ClientContext>(
    client: &Client<C>,
    offsets: &TopicPartitionList,
    timeout: Duration,
) -> KafkaResult<()> {
    let timeout_ms = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
    let failed = |code: RDKafkaErrorCode| Err(KafkaError::ConsumerCommit(code));
    if timeout_ms == 0 {
        return failed(RDKafkaErrorCode::OperationTimedOut);
    }
    // SAFETY: the client and the list outlive the call, which copies the list; the queue and the event made here are
    // destroyed here, and an answer that comes later finds the queue closed; a null event is checked.
    let code = unsafe {
        let queue = rdsys::rd_kafka_queue_new(client.native_ptr());
        let asked = rdsys::rd_kafka_commit_queue(
            client.native_ptr(),
            offsets.ptr(),
            queue,
            None,
            ptr::null_mut(),
        );
        let code = if asked == rdsys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
            let event = rdsys::rd_kafka_queue_poll(queue, timeout_ms);
            if event.is_null() {
                rdsys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR__TIMED_OUT
            } else {
                let code = error_in(event);
                rdsys::rd_kafka_event_destroy(event);
                code
            }
        } else {
            asked
        };
        rdsys::rd_kafka_queue_destroy(queue);
        code
    };
    match code {
        rdsys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR => Ok(()),
        code => failed(code.into()),
    }
}

/// The error of a commit, or of the first partition that has one.
///
/// # Safety
/// `event` is the answer to a commit.
unsafe fn error_in(event: *mut rdsys::rd_kafka_event_t) -> rdsys::rd_kafka_resp_err_t {
    // SAFETY: as promised by the caller; the list is read before the event is destroyed, within its length.
    unsafe {
        let code = rdsys::rd_kafka_event_error(event);
        let list = rdsys::rd_kafka_event_topic_partition_list(event);
        if code != rdsys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR || list.is_null() {
            return code;
        }
        let count = usize::try_from((*list).cnt).unwrap_or(0);
        (0..count)
            .map(|index| (*(*list).elems.add(index)).err)
            .find(|code| *code != rdsys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR)
            .unwrap_or(code)
    }
}

/// Commits without waiting. The commit callback hears of the outcome in a later poll; of the safe API's asynchronous
/// commits it never does, because the client library answers only where it was told to.
pub(super) fn commit<C: ClientContext>(
    client: &Client<C>,
    offsets: &TopicPartitionList,
) -> KafkaResult<()> {
    let ok = rdsys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR;
    let unknown = rdsys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR__UNKNOWN_GROUP;
    // SAFETY: the list is copied; the queue is checked, the commit holds a reference of its own to it, and ours is
    // given back here.
    let outcome = unsafe {
        let handle = client.native_ptr();
        let queue = rdsys::rd_kafka_queue_get_consumer(handle);
        if queue.is_null() {
            unknown
        } else {
            let outcome =
                rdsys::rd_kafka_commit_queue(handle, offsets.ptr(), queue, None, ptr::null_mut());
            rdsys::rd_kafka_queue_destroy(queue);
            outcome
        }
    };
    if outcome == ok { Ok(()) } else { Err(KafkaError::ConsumerCommit(outcome.into())) }
}

/// Gives the client a token for its next handshakes with brokers. The safe API does so too, but without extensions and
/// only when the client is polled.
pub(super) fn set_token<C: ClientContext>(
    client: &Client<C>,
    token: &str,
    expires_ms: i64,
    principal: &str,
    extensions: &BTreeMap<String, String>,
) -> Result<(), String> {
    let text = |text: &str| CString::new(text).map_err(|_| "it has a zero byte".to_owned());
    let (token, principal) = (text(token)?, text(principal)?);
    let words = extensions.iter().flat_map(|(name, value)| [name, value]);
    let words = words.map(|word| text(word)).collect::<Result<Vec<CString>, String>>()?;
    let mut pointers: Vec<*const c_char> = words.iter().map(|word| word.as_ptr()).collect();
    let mut error = [0; 512];
    // SAFETY: everything is copied before the call returns; it ends its words with a zero byte within the given size.
    unsafe {
        let outcome = rdsys::rd_kafka_oauthbearer_set_token(
            client.native_ptr(),
            token.as_ptr(),
            expires_ms,
            principal.as_ptr(),
            pointers.as_mut_ptr(),
            pointers.len(),
            error.as_mut_ptr(),
            error.len(),
        );
        if outcome == rdsys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
            Ok(())
        } else {
            Err(CStr::from_ptr(error.as_ptr()).to_string_lossy().into_owned())
        }
    }
}

/// The id that tells a topic from another of the same name, in base64; `None` if the broker does not say.
fn topic_id<C: ClientContext>(
    client: &Client<C>,
    topic: &str,
    timeout: Duration,
) -> Option<String> {
    let name = CString::new(topic).ok()?;
    let timeout_ms = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
    let mut names = [name.as_ptr()];
    // SAFETY: every object made here is destroyed here; the collection copies the name; the result is read before its
    // event is destroyed; null results are checked.
    unsafe {
        let handle = client.native_ptr();
        let queue = rdsys::rd_kafka_queue_new(handle);
        let topics = rdsys::rd_kafka_TopicCollection_of_topic_names(names.as_mut_ptr(), 1);
        let options = rdsys::rd_kafka_AdminOptions_new(
            handle,
            rdsys::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS,
        );
        let mut error = [0; 256];
        let set = rdsys::rd_kafka_AdminOptions_set_request_timeout(
            options,
            timeout_ms,
            error.as_mut_ptr(),
            error.len(),
        );
        let event = if set == rdsys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
            rdsys::rd_kafka_DescribeTopics(handle, topics, options, queue);
            rdsys::rd_kafka_queue_poll(queue, timeout_ms)
        } else {
            ptr::null_mut()
        };
        let id = if event.is_null() { None } else { id_in(event) };
        if !event.is_null() {
            rdsys::rd_kafka_event_destroy(event);
        }
        rdsys::rd_kafka_AdminOptions_destroy(options);
        rdsys::rd_kafka_TopicCollection_destroy(topics);
        rdsys::rd_kafka_queue_destroy(queue);
        id
    }
}

/// # Safety
/// `event` is the answer to a request for one topic.
unsafe fn id_in(event: *mut rdsys::rd_kafka_event_t) -> Option<String> {
    // SAFETY: as promised by the caller; each pointer is checked before it is followed.
    unsafe {
        let result = rdsys::rd_kafka_event_DescribeTopics_result(event);
        if result.is_null() {
            return None;
        }
        let mut count = 0;
        let descriptions = rdsys::rd_kafka_DescribeTopics_result_topics(result, &raw mut count);
        if descriptions.is_null() || count != 1 {
            return None;
        }
        let id = rdsys::rd_kafka_TopicDescription_topic_id(*descriptions);
        if id.is_null() {
            return None;
        }
        let text = rdsys::rd_kafka_Uuid_base64str(id);
        if text.is_null() {
            return None;
        }
        let text = CStr::from_ptr(text).to_str().ok()?.to_owned();
        // All zero: the broker has no ids.
        (!text.trim_matches(['A', '=']).is_empty()).then_some(text)
    }
}

/// What a principal's rights are about.
#[derive(Debug, Clone, Copy)]
pub(super) enum Resource<'a> {
    /// A topic of this name.
    Topic(&'a str),
    /// A group of this name, whether there is one or not.
    Group(&'a str),
}

/// What we may do with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Operations {
    /// Consume, join and commit.
    pub read: bool,
    /// Produce.
    pub write: bool,
}

/// Asks the brokers what we may do; `None` if they do not tell.
///
/// # Errors
/// It is not there, or we may not even see it.
pub(super) fn operations<C: ClientContext>(
    client: &Client<C>,
    resource: Resource<'_>,
    timeout: Duration,
) -> Result<Option<Operations>, RDKafkaErrorCode> {
    let (Resource::Topic(name) | Resource::Group(name)) = resource;
    let Ok(name) = CString::new(name) else { return Err(RDKafkaErrorCode::InvalidArgument) };
    let timeout_ms = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
    let mut names = [name.as_ptr()];
    let operation = match resource {
        Resource::Topic(_) => rdsys::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS,
        Resource::Group(_) => rdsys::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBECONSUMERGROUPS,
    };
    // SAFETY: every object made here is destroyed here; the name outlives the request, which copies it; the result is
    // read before its event is destroyed; null results are checked.
    unsafe {
        let handle = client.native_ptr();
        let queue = rdsys::rd_kafka_queue_new(handle);
        let options = rdsys::rd_kafka_AdminOptions_new(handle, operation);
        let mut error = [0; 256];
        // Times are within what the library takes; one that is not is replaced by its own.
        rdsys::rd_kafka_AdminOptions_set_request_timeout(
            options,
            timeout_ms,
            error.as_mut_ptr(),
            error.len(),
        );
        let refused = rdsys::rd_kafka_AdminOptions_set_include_authorized_operations(options, 1);
        if !refused.is_null() {
            rdsys::rd_kafka_error_destroy(refused);
        }
        let event = match resource {
            Resource::Topic(_) => {
                let topics = rdsys::rd_kafka_TopicCollection_of_topic_names(names.as_mut_ptr(), 1);
                rdsys::rd_kafka_DescribeTopics(handle, topics, options, queue);
                let event = rdsys::rd_kafka_queue_poll(queue, timeout_ms);
                rdsys::rd_kafka_TopicCollection_destroy(topics);
                event
            }
            Resource::Group(_) => {
                rdsys::rd_kafka_DescribeConsumerGroups(
                    handle,
                    names.as_mut_ptr(),
                    1,
                    options,
                    queue,
                );
                rdsys::rd_kafka_queue_poll(queue, timeout_ms)
            }
        };
        let found = if event.is_null() {
            Err(RDKafkaErrorCode::OperationTimedOut)
        } else {
            let found = operations_in(event, resource);
            rdsys::rd_kafka_event_destroy(event);
            found
        };
        rdsys::rd_kafka_AdminOptions_destroy(options);
        rdsys::rd_kafka_queue_destroy(queue);
        found
    }
}

/// # Safety
/// `event` is the answer to a request that described one such resource.
unsafe fn operations_in(
    event: *mut rdsys::rd_kafka_event_t,
    resource: Resource<'_>,
) -> Result<Option<Operations>, RDKafkaErrorCode> {
    const NONE: rdsys::rd_kafka_resp_err_t = rdsys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR;
    // SAFETY: as promised by the caller; each pointer is checked before it is followed, and the operations are read
    // within their count while the event lives.
    unsafe {
        let code = rdsys::rd_kafka_event_error(event);
        if code != NONE {
            return Err(code.into());
        }
        let (mut described, mut count) = (0, 0);
        let (error, operations) = match resource {
            Resource::Topic(_) => {
                let result = rdsys::rd_kafka_event_DescribeTopics_result(event);
                if result.is_null() {
                    return Ok(None);
                }
                let topics =
                    rdsys::rd_kafka_DescribeTopics_result_topics(result, &raw mut described);
                if topics.is_null() || described != 1 {
                    return Ok(None);
                }
                (
                    rdsys::rd_kafka_TopicDescription_error(*topics),
                    rdsys::rd_kafka_TopicDescription_authorized_operations(*topics, &raw mut count),
                )
            }
            Resource::Group(_) => {
                let result = rdsys::rd_kafka_event_DescribeConsumerGroups_result(event);
                if result.is_null() {
                    return Ok(None);
                }
                let groups = rdsys::rd_kafka_DescribeConsumerGroups_result_groups(
                    result,
                    &raw mut described,
                );
                if groups.is_null() || described != 1 {
                    return Ok(None);
                }
                (
                    rdsys::rd_kafka_ConsumerGroupDescription_error(*groups),
                    rdsys::rd_kafka_ConsumerGroupDescription_authorized_operations(
                        *groups,
                        &raw mut count,
                    ),
                )
            }
        };
        let code = if error.is_null() { NONE } else { rdsys::rd_kafka_error_code(error) };
        if code != NONE {
            return Err(code.into());
        }
        if operations.is_null() {
            return Ok(None);
        }
        let operations = std::slice::from_raw_parts(operations, count);
        let has = |wanted| operations.contains(&wanted);
        Ok(Some(Operations {
            read: has(rdsys::rd_kafka_AclOperation_t::RD_KAFKA_ACL_OPERATION_READ),
            write: has(rdsys::rd_kafka_AclOperation_t::RD_KAFKA_ACL_OPERATION_WRITE),
        }))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use rdkafka::consumer::{BaseConsumer, Consumer as _};
    use rdkafka::{ClientConfig, Offset};

    use super::*;

    #[test]
    fn the_leader_epoch_of_an_offset_is_what_was_set_or_unknown() {
        let mut offsets = TopicPartitionList::new();
        offsets.add_partition_offset("topic", 3, Offset::Offset(5)).unwrap();
        assert_eq!(committed_leader_epoch(&offsets, "topic", 3), -1);
        set_leader_epoch(&mut offsets, "topic", 3, 7);
        assert_eq!(committed_leader_epoch(&offsets, "topic", 3), 7);
        assert_eq!(committed_leader_epoch(&offsets, "topic", 4), -1, "not in the list");
    }

    #[test]
    fn a_commit_that_nobody_answers_is_waited_for_no_longer_than_told() {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", "127.0.0.1:1")
            .set("group.id", "group")
            .set("session.timeout.ms", "6000")
            .set("log_level", "0")
            .create()
            .unwrap();
        let mut offsets = TopicPartitionList::new();
        offsets.add_partition_offset("topic", 0, Offset::Offset(5)).unwrap();
        for wait_ms in [0, 300] {
            let begun = Instant::now();
            let wait = Duration::from_millis(wait_ms);
            let error = commit_within(consumer.client(), &offsets, wait).unwrap_err();
            assert_eq!(error, KafkaError::ConsumerCommit(RDKafkaErrorCode::OperationTimedOut));
            assert!(begun.elapsed() >= wait && begun.elapsed() < Duration::from_secs(5));
        }
    }
}
