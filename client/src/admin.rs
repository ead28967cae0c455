//! Calls about members and moves. Any node forwards them to the leader of the meta group.
use std::{future::Future, pin::Pin, sync::Arc, time::Instant};

use futures::{Stream, stream};
use ringfold_proto::v1;
use tonic::{Code, Request, Response, Status, Streaming, transport::Channel};

use crate::{
    Client, ClientError,
    client::{cluster, no_answer},
    error::ServerError,
    nodes::Node,
    retry::{Tries, backoff},
};

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, ClientError>> + Send>>;

impl Client {
    /// What the cluster is about to move, and why, from a look at it that begins after the question.
    ///
    /// # Errors
    /// [`ClientError::Unavailable`], also while partitions are not placed yet.
    pub async fn rebalance_plan(&self) -> Result<v1::RebalancePlanResponse, ClientError> {
        let send = |c, r| async move { cluster(c).rebalance_plan(r).await };
        let answer = self.call(None, &v1::RebalancePlanRequest {}, send).await;
        answer.map_err(Tries::conclude_read)
    }

    /// The plan, now and again whenever it changes, at most twice a second. It has no end; a change
    /// of the meta group's leader is not seen. It ends after one error, which is
    /// [`ClientError::Unavailable`] when it cannot be taken up again within the deadline.
    pub fn rebalance_watch(&self) -> Answers<v1::RebalancePlanResponse> {
        watch(self.clone(), v1::RebalanceWatchRequest {})
    }

    /// Has balancing and draining wait; repairs go on. Paused already, it changes nothing.
    ///
    /// # Errors
    /// [`ClientError::Refused`], [`ClientError::Unavailable`].
    pub async fn rebalance_pause(&self) -> Result<(), ClientError> {
        let send = |c, r| async move { cluster(c).rebalance_pause(r).await };
        let request = v1::RebalancePauseRequest { if_epoch: self.if_epoch() };
        let answer = self.call(None, &request, send).await;
        answer.map(|_| ()).map_err(Tries::conclude_read)
    }

    /// Has balancing and draining go on.
    ///
    /// # Errors
    /// [`ClientError::Refused`], [`ClientError::Unavailable`].
    pub async fn rebalance_resume(&self) -> Result<(), ClientError> {
        let send = |c, r| async move { cluster(c).rebalance_resume(r).await };
        let request = v1::RebalanceResumeRequest { if_epoch: self.if_epoch() };
        let answer = self.call(None, &request, send).await;
        answer.map(|_| ()).map_err(Tries::conclude_read)
    }

    /// Moves everything off a node; the first message says that this has begun. Dropping the stream
    /// does not stop it: [`Client::undrain`] does. The last message has `done` set. A change of the
    /// meta group's leader is not seen: the call is said again, and `replicas_at_start` stays that of
    /// the first answer. It ends after one error: [`ClientError::Refused`] with `DRAIN_IMPOSSIBLE`
    /// (nothing was changed), `MEMBER_NOT_FOUND`, or `MEMBER_REFUSED` when the node was undrained;
    /// [`ClientError::Unavailable`] when nobody answers within the deadline.
    pub fn drain(&self, node_id: u64) -> Answers<v1::DrainProgress> {
        watch(self.clone(), Drain { node_id, if_epoch: self.if_epoch(), replicas_at_start: None })
    }

    /// Lets a draining node take replicas again. Of an active one it changes nothing.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with `MEMBER_NOT_FOUND`, [`ClientError::Unavailable`].
    pub async fn undrain(&self, node_id: u64) -> Result<(), ClientError> {
        let send = |c, r| async move { cluster(c).undrain(r).await };
        let request = v1::UndrainRequest { node_id, if_epoch: self.if_epoch() };
        let answer = self.call(None, &request, send).await;
        answer.map(|_| ()).map_err(Tries::conclude_read)
    }

    /// Takes a drained node out of the cluster for good; its process ends by itself. Removed already,
    /// it changes nothing.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with `MEMBER_NOT_FOUND`, or with `MEMBER_REFUSED` where it is not
    /// drained; [`ClientError::Unavailable`].
    pub async fn remove_member(&self, node_id: u64) -> Result<(), ClientError> {
        let send = |c, r| async move { cluster(c).remove_member(r).await };
        let request = v1::RemoveMemberRequest { node_id, if_epoch: self.if_epoch() };
        let answer = self.call(None, &request, send).await;
        answer.map(|_| ()).map_err(Tries::conclude_read)
    }
}

/// A request whose answers are asked for again when they break off.
trait Watched: Send + 'static {
    type Message: Send + 'static;
    /// Nothing may change for long, so silence is no failure. The first answer comes at once.
    const MAY_BE_SILENT: bool;
    fn open(
        &self,
        channel: Channel,
    ) -> impl Future<Output = Result<Response<Streaming<Self::Message>>, Status>> + Send;
    fn take(&mut self, message: &mut Self::Message) -> Taken;
}

#[derive(Clone, Copy, PartialEq)]
enum Taken {
    /// The node has nothing to say: it does not lead the meta group any more, or not for long.
    Nothing,
    More,
    Last,
}

impl Watched for v1::RebalanceWatchRequest {
    type Message = v1::RebalancePlanResponse;
    const MAY_BE_SILENT: bool = true;
    async fn open(&self, channel: Channel) -> Result<Response<Streaming<Self::Message>>, Status> {
        cluster(channel).rebalance_watch(Request::new(*self)).await
    }
    fn take(&mut self, message: &mut Self::Message) -> Taken {
        if message.epoch == 0 { Taken::Nothing } else { Taken::More }
    }
}

struct Drain {
    node_id: u64,
    if_epoch: u64,
    replicas_at_start: Option<u32>,
}

impl Watched for Drain {
    type Message = v1::DrainProgress;
    const MAY_BE_SILENT: bool = false;
    async fn open(&self, channel: Channel) -> Result<Response<Streaming<Self::Message>>, Status> {
        let Drain { node_id, if_epoch, .. } = *self;
        cluster(channel).drain(Request::new(v1::DrainRequest { node_id, if_epoch })).await
    }
    fn take(&mut self, message: &mut Self::Message) -> Taken {
        message.replicas_at_start =
            *self.replicas_at_start.get_or_insert(message.replicas_at_start);
        if message.done { Taken::Last } else { Taken::More }
    }
}

struct Watching<W: Watched> {
    client: Client,
    request: W,
    /// The node that is asked, and its answers once there are some.
    node: Option<Arc<Node>>,
    answers: Option<Streaming<W::Message>>,
    /// An answer has come over this connection.
    has_answered: bool,
    failed: Option<Arc<Node>>,
    ended: bool,
}

fn watch<W: Watched>(client: Client, request: W) -> Answers<W::Message> {
    let watching = Watching {
        client,
        request,
        node: None,
        answers: None,
        has_answered: false,
        failed: None,
        ended: false,
    };
    Box::pin(stream::unfold(watching, |mut watching| async move {
        if watching.ended {
            return None;
        }
        let next = watching.next().await.map_err(|tries| {
            watching.ended = true;
            tries.conclude_read()
        });
        Some((next, watching))
    }))
}

impl<W: Watched> Watching<W> {
    /// The next message, over all tries within the deadline, which begins with the first failure.
    async fn next(&mut self) -> Result<W::Message, Tries> {
        let config = self.client.config().clone();
        let mut tries = Tries::default();
        let mut deadline = None;
        loop {
            let left = deadline
                .map_or(config.deadline, |d: Instant| d.saturating_duration_since(Instant::now()));
            // Half of the deadline leaves room to ask another node.
            let within = left.min(config.retry.try_timeout.max(config.deadline / 2));
            let silent = W::MAY_BE_SILENT && self.has_answered;
            let answer = if silent {
                Ok(self.try_next().await)
            } else {
                tokio::time::timeout(within, self.try_next()).await
            };
            let error = match answer {
                Ok(Ok(Some(mut message))) => match self.request.take(&mut message) {
                    Taken::Nothing => Some(ServerError::local(
                        Code::Unavailable,
                        "the node that answers does not know the plan",
                    )),
                    taken => {
                        self.has_answered = true;
                        self.failed = None;
                        self.ended = taken == Taken::Last;
                        return Ok(message);
                    }
                },
                Ok(Ok(None)) => {
                    Some(ServerError::local(Code::Unavailable, "the answers broke off"))
                }
                Ok(Err(status)) => Some(ServerError::from(status)),
                Err(_) => None,
            };
            self.answers = None;
            self.has_answered = false;
            self.failed = self.node.take();
            let Some(node) = &self.failed else {
                return Err(tries); // not reached: a try begins with a node
            };
            let error = error.unwrap_or_else(|| no_answer(node, within));
            self.client.take_failure(node, None, &error);
            if !tries.failed(error) {
                return Err(tries);
            }
            let wait = backoff(&config.retry, tries.count, rand::random());
            let deadline = *deadline.get_or_insert_with(|| Instant::now() + config.deadline);
            if Instant::now() + wait >= deadline {
                return Err(tries);
            }
            tokio::time::sleep(wait).await;
        }
    }

    async fn try_next(&mut self) -> Result<Option<W::Message>, Status> {
        let answers = match &mut self.answers {
            Some(answers) => answers,
            None => {
                let (_, node) = self.client.route(None, self.failed.as_ref());
                let channel = self.node.insert(node).channel();
                let answers = self.request.open(channel).await?;
                self.answers.insert(answers.into_inner())
            }
        };
        answers.message().await
    }
}
