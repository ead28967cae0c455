//! Requests between nodes: one answer to each, in order, on a connection of their own.
use super::connection::{DialError, FrameReader, ReadFrameError};
use super::frame::{FrameError, put_frame};
use super::transport::{Counters, Handlers, count};
use crate::ids::NodeId;
use bytes::BytesMut;
use prost::Message;
use ringfold_proto::internal::control_request::Request;
use ringfold_proto::internal::control_response::Response;
use ringfold_proto::internal::{
    Chunk, ControlRequest, ControlResponse, FetchChunk, FetchManifest, Hello, HelloAnswer, Join,
    JoinAnswer, Manifest, Offer, Refusal, Report, ReportAnswer, Step, StepAnswer, Taken,
    TransferDone,
};
use ringfold_tls::Stream;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;

const REQUEST_BYTES_MAX: usize = 256 << 10;
pub(crate) const ANSWER_BYTES_MAX: usize = 4 << 20;
/// A connection without a request for so long is closed.
const IDLE: Duration = Duration::from_secs(60);
/// For an answer; chunks may wait for the sender's rate.
const ANSWER: Duration = Duration::from_secs(10);
const CHUNK_ANSWER: Duration = Duration::from_secs(30);

/// Answers what nodes ask while they find each other, and what the leader of the meta group asks.
#[tonic::async_trait]
pub trait ControlHandler: Send + Sync + 'static {
    async fn hello(&self, hello: Hello) -> HelloAnswer;
    /// Refused by all but the leader of the meta group.
    async fn join(&self, join: Join) -> Result<JoinAnswer, Refusal>;
    /// What this node has.
    async fn report(&self) -> Result<ReportAnswer, Refusal> {
        Err(no_steps())
    }
    /// A step of the plan, for a group that this node leads.
    async fn step(&self, _: Step) -> Result<(), Refusal> {
        Err(no_steps())
    }
}

fn no_steps() -> Refusal {
    refusal("NOT_A_MEMBER", "this node takes no steps")
}

/// Answers what checkpoint transfers need; `from` is who asks.
#[tonic::async_trait]
pub trait TransferHandler: Send + Sync + 'static {
    async fn offer(&self, from: NodeId, offer: Offer) -> Result<(), Refusal>;
    async fn done(&self, from: NodeId, done: TransferDone);
    async fn manifest(&self, from: NodeId, fetch: FetchManifest) -> Result<Manifest, Refusal>;
    async fn chunk(&self, from: NodeId, fetch: FetchChunk) -> Result<Chunk, Refusal>;
}

/// Refuses all transfers.
pub struct NoTransfers;

#[tonic::async_trait]
impl TransferHandler for NoTransfers {
    async fn offer(&self, _: NodeId, _: Offer) -> Result<(), Refusal> {
        Err(no_transfers())
    }

    async fn done(&self, _: NodeId, _: TransferDone) {}

    async fn manifest(&self, _: NodeId, _: FetchManifest) -> Result<Manifest, Refusal> {
        Err(no_transfers())
    }

    async fn chunk(&self, _: NodeId, _: FetchChunk) -> Result<Chunk, Refusal> {
        Err(no_transfers())
    }
}

fn no_transfers() -> Refusal {
    refusal("NO_TRANSFERS", "this node takes no part in transfers")
}

pub fn refusal(reason: &str, message: impl ToString) -> Refusal {
    Refusal { reason: reason.into(), message: message.to_string() }
}

/// Why a request to a peer has no answer. After all but `Refused` the connection is of no more use.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    #[error("no address of {0} is known")]
    NoAddress(NodeId),
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    #[error(transparent)]
    Read(#[from] ReadFrameError),
    #[error("the request of {bytes} bytes is too large, at most {REQUEST_BYTES_MAX} are allowed")]
    TooLarge { bytes: usize },
    #[error("the answer is none to this request")]
    Unexpected,
    /// The peer is well and says no.
    #[error("refused: {} ({})", .0.message, .0.reason)]
    Refused(Refusal),
}

/// A connection for requests.
pub struct PeerClient {
    reader: FrameReader<Stream>,
    /// Who answered the handshake; 0: a node without an id yet.
    pub node: NodeId,
}

impl PeerClient {
    pub(super) fn new(stream: Stream, node: NodeId) -> PeerClient {
        PeerClient { reader: FrameReader::new(stream, ANSWER_BYTES_MAX), node }
    }

    pub async fn hello(&mut self, hello: Hello) -> Result<HelloAnswer, ControlError> {
        match self.ask(Request::Hello(hello), ANSWER).await? {
            Response::Hello(answer) => Ok(answer),
            _ => Err(ControlError::Unexpected),
        }
    }

    pub async fn join(&mut self, join: Join) -> Result<JoinAnswer, ControlError> {
        match self.ask(Request::Join(join), ANSWER).await? {
            Response::Join(answer) => Ok(answer),
            _ => Err(ControlError::Unexpected),
        }
    }

    pub async fn report(&mut self) -> Result<ReportAnswer, ControlError> {
        match self.ask(Request::Report(Report {}), ANSWER).await? {
            Response::Report(answer) => Ok(answer),
            _ => Err(ControlError::Unexpected),
        }
    }

    pub async fn step(&mut self, step: Step) -> Result<(), ControlError> {
        match self.ask(Request::Step(step), ANSWER).await? {
            Response::Step(_) => Ok(()),
            _ => Err(ControlError::Unexpected),
        }
    }

    pub async fn manifest(&mut self, fetch: FetchManifest) -> Result<Manifest, ControlError> {
        match self.ask(Request::FetchManifest(fetch), ANSWER).await? {
            Response::Manifest(manifest) => Ok(manifest),
            _ => Err(ControlError::Unexpected),
        }
    }

    pub async fn chunk(&mut self, fetch: FetchChunk) -> Result<Chunk, ControlError> {
        match self.ask(Request::FetchChunk(fetch), CHUNK_ANSWER).await? {
            Response::Chunk(chunk) => Ok(chunk),
            _ => Err(ControlError::Unexpected),
        }
    }

    pub async fn offer(&mut self, offer: Offer) -> Result<(), ControlError> {
        self.told(Request::Offer(offer)).await
    }

    pub async fn transfer_done(&mut self, done: TransferDone) -> Result<(), ControlError> {
        self.told(Request::TransferDone(done)).await
    }

    async fn told(&mut self, request: Request) -> Result<(), ControlError> {
        match self.ask(request, ANSWER).await? {
            Response::Taken(_) => Ok(()),
            _ => Err(ControlError::Unexpected),
        }
    }

    async fn ask(&mut self, request: Request, limit: Duration) -> Result<Response, ControlError> {
        let request = ControlRequest { request: Some(request) };
        let bytes = request.encoded_len();
        if bytes > REQUEST_BYTES_MAX {
            return Err(ControlError::TooLarge { bytes });
        }
        let exchange = async {
            write(self.reader.get_mut(), &request).await.map_err(ReadFrameError::Io)?;
            Ok(self.reader.next().await?)
        };
        let payload =
            timeout(limit, exchange).await.unwrap_or(Err(ControlError::Timeout(limit)))?;
        let response = ControlResponse::decode(payload).map_err(|_| ControlError::Unexpected)?;
        match response.response {
            Some(Response::Refusal(refusal)) => Err(ControlError::Refused(refusal)),
            Some(response) => Ok(response),
            None => Err(ControlError::Unexpected),
        }
    }
}

async fn write(stream: &mut Stream, message: &impl Message) -> std::io::Result<()> {
    let mut frame = BytesMut::with_capacity(super::frame::FRAME_HEAD_BYTES + message.encoded_len());
    put_frame(&mut frame, |out| message.encode_raw(out));
    stream.write_all(&frame).await?;
    // TLS keeps the end of it otherwise.
    stream.flush().await
}

/// Answers requests until the connection ends.
pub(super) async fn serve(
    stream: Stream,
    from: NodeId,
    handlers: &Handlers,
    counters: &Counters,
) -> ReadFrameError {
    let mut reader = FrameReader::new(stream, REQUEST_BYTES_MAX);
    loop {
        let payload = match timeout(IDLE, reader.next()).await {
            Ok(Ok(payload)) => payload,
            Ok(Err(error)) => return error,
            Err(_) => return ReadFrameError::Closed,
        };
        count(&counters.control_requests, 1);
        let request = match ControlRequest::decode(payload) {
            Ok(ControlRequest { request: Some(request) }) => Ok(request),
            // A newer peer's request: it hears that, and the connection stays.
            Ok(ControlRequest { request: None }) => {
                Err(refusal("UNKNOWN_REQUEST", "this node does not know the request"))
            }
            Err(_) => return FrameError::Length("request").into(),
        };
        let answer = match request {
            Ok(request) => answer(request, from, handlers).await,
            Err(refusal) => Err(refusal),
        };
        let response = answer.unwrap_or_else(|refusal| {
            count(&counters.control_refusals, 1);
            Response::Refusal(refusal)
        });
        let mut response = ControlResponse { response: Some(response) };
        if response.encoded_len() > ANSWER_BYTES_MAX {
            let too_large = refusal("ANSWER_TOO_LARGE", "the answer is too large for a frame");
            response = ControlResponse { response: Some(Response::Refusal(too_large)) };
        }
        match timeout(ANSWER, write(reader.get_mut(), &response)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return error.into(),
            Err(_) => return ReadFrameError::Closed,
        }
    }
}

async fn answer(request: Request, from: NodeId, to: &Handlers) -> Result<Response, Refusal> {
    match request {
        Request::Hello(hello) => Ok(Response::Hello(to.control.hello(hello).await)),
        Request::Join(join) => to.control.join(join).await.map(Response::Join),
        // Only members: a node without an id has no business with the plan.
        Request::Report(_) | Request::Step(_) if from.0 == 0 => {
            Err(refusal("NOT_A_MEMBER", "only members of the cluster may ask this"))
        }
        Request::Report(_) => to.control.report().await.map(Response::Report),
        Request::Step(step) => to.control.step(step).await.map(|()| Response::Step(StepAnswer {})),
        Request::FetchManifest(f) => to.transfers.manifest(from, f).await.map(Response::Manifest),
        Request::FetchChunk(f) => to.transfers.chunk(from, f).await.map(Response::Chunk),
        Request::Offer(offer) => {
            to.transfers.offer(from, offer).await.map(|()| Response::Taken(Taken {}))
        }
        Request::TransferDone(done) => {
            to.transfers.done(from, done).await;
            Ok(Response::Taken(Taken {}))
        }
    }
}
