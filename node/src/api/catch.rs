//! A panic while one call is answered ends that call, and nothing else.
use super::errors::ApiError;
use crate::panics;
use http_body::{Frame, SizeHint};
use std::any::Any;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::codegen::http::{HeaderMap, Request, Response};
use tower::Service;

/// A service whose calls are caught one by one: the client of one that panics gets `INTERNAL`.
#[derive(Debug, Clone)]
pub struct CatchPanics<S>(pub S);

type Caught<E> = Pin<Box<dyn Future<Output = Result<Response<Body>, E>> + Send>>;

impl<S> Service<Request<Body>> for CatchPanics<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Caught<S::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let path = request.uri().path_and_query().cloned();
        let mut answer = match panics::catch(|| self.0.call(request)) {
            Ok(answer) => Box::pin(answer),
            Err(panic) => {
                let failed = said(&*panic, path.as_ref()).into_http();
                return Box::pin(async move { Ok(failed) });
            }
        };
        Box::pin(poll_fn(move |cx| match panics::catch(|| answer.as_mut().poll(cx)) {
            Ok(poll) => poll.map_ok(|response| {
                let path = path.clone();
                response.map(|body| Body::new(CatchBody { body: Some(body), path }))
            }),
            Err(panic) => Poll::Ready(Ok(said(&*panic, path.as_ref()).into_http())),
        }))
    }
}

fn said(panic: &(dyn Any + Send), path: Option<&PathAndQuery>) -> Status {
    let what = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("a panic without a message");
    let path = path.map_or("", PathAndQuery::path);
    ApiError::internal(format_args!("a call of {path} panicked: {what}")).into()
}

/// What is streamed to the client; after a panic only its status follows.
struct CatchBody {
    body: Option<Body>,
    path: Option<PathAndQuery>,
}

impl http_body::Body for CatchBody {
    type Data = <Body as http_body::Body>::Data;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Status>>> {
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        match panics::catch(|| Pin::new(body).poll_frame(cx)) {
            Ok(poll) => poll,
            Err(panic) => {
                self.body = None;
                let status = said(&*panic, self.path.as_ref());
                let mut trailers = HeaderMap::new();
                Poll::Ready(Some(
                    status.add_header(&mut trailers).map(|()| Frame::trailers(trailers)),
                ))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(http_body::Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), http_body::Body::size_hint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;
    use tower::service_fn;

    async fn call<F>(answer: impl FnMut(Request<Body>) -> F) -> Response<Body>
    where
        F: Future<Output = Result<Response<Body>, Infallible>> + Send + 'static,
    {
        CatchPanics(service_fn(answer)).call(Request::new(Body::empty())).await.unwrap()
    }

    fn is_internal(headers: &HeaderMap) -> bool {
        let status = Status::from_header_map(headers).unwrap();
        status.code() == tonic::Code::Internal && !status.message().contains("planted")
    }

    #[tokio::test]
    async fn a_call_that_panics_is_answered_and_the_next_one_works() {
        let early = call(|_| -> std::future::Ready<_> { panic!("planted") }).await;
        assert!(is_internal(early.headers()), "{early:?}");
        let late = call(|_| async {
            tokio::task::yield_now().await;
            panic!("planted")
        });
        assert!(is_internal(late.await.headers()));
        let fine = call(|_| async { Ok(Response::new(Body::empty())) }).await;
        assert!(fine.headers().is_empty());
    }

    /// Panics with its first frame.
    struct Panics;

    impl http_body::Body for Panics {
        type Data = tonic::codegen::Bytes;
        type Error = Status;
        fn poll_frame(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Self::Data>, Status>>> {
            panic!("planted")
        }
    }

    #[tokio::test]
    async fn a_stream_that_panics_ends_with_its_status() {
        let mut body = call(|_| async { Ok(Response::new(Body::new(Panics))) }).await.into_body();
        let mut frames = Vec::new();
        while let Some(frame) =
            poll_fn(|cx| http_body::Body::poll_frame(Pin::new(&mut body), cx)).await
        {
            frames.push(frame.unwrap());
        }
        let trailers = frames.pop().unwrap().into_trailers().unwrap();
        assert!(is_internal(&trailers) && frames.is_empty());
    }
}
