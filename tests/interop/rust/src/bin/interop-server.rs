//! The real Blazen server with steps for tests and the benchmark: `interop-server ADDRESS`.
//!
//! It writes `listens on http://ADDRESS` once it listens, `ran STEP` for each execution of a step that is not a benchmark's, and
//! `stopped STEP` when one is dropped before its end.

use std::sync::Arc;
use std::time::Duration;

use blazen_core::session_ref::{SessionRefError, SessionRefSerializable};
use blazen_core::step_registry::register_step_builder;
use blazen_core::{Context, StepOutput, WorkflowError};
use blazen_events::{AnyEvent, StartEvent, StopEvent};
use blazen_macros::{Event, step};
use blazen_peer::BlazenPeerServer;
use blazen_peer::pb::blazen_peer_server::BlazenPeerServer as PeerService;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tonic::transport::server::TcpIncoming;

const PARTS: u64 = 10;

fn ran(step: &str) {
    println!("ran interop::{step}");
}

fn stop(result: Value) -> Result<StopEvent, WorkflowError> {
    Ok(StopEvent { result })
}

#[derive(Debug, Clone, Serialize, Deserialize, Event)]
struct Analyzed {
    words: usize,
}

#[derive(Debug, Clone, Serialize, Deserialize, Event)]
struct Part {
    number: u64,
}

#[derive(Debug, Clone, Serialize, Deserialize, Event)]
struct Done {
    number: u64,
}

#[derive(Debug, Clone, Serialize, Deserialize, Event)]
struct Stray {}

#[derive(Debug, Clone, Serialize, Deserialize, Event)]
struct Passed {
    text: Value,
}

struct Unfinished(bool);

impl Drop for Unfinished {
    fn drop(&mut self) {
        if self.0 {
            println!("stopped interop::sleep");
        }
    }
}

struct Opaque(Vec<u8>);

impl SessionRefSerializable for Opaque {
    fn blazen_serialize(&self) -> Result<Vec<u8>, SessionRefError> {
        Ok(self.0.clone())
    }

    fn blazen_type_tag(&self) -> &'static str {
        "interop::Opaque"
    }
}

#[step]
async fn echo(event: StartEvent, _ctx: Context) -> Result<StopEvent, WorkflowError> {
    ran("echo");
    stop(event.data)
}

#[step]
async fn analyze(event: StartEvent, _ctx: Context) -> Result<Analyzed, WorkflowError> {
    ran("analyze");
    let text = event.data["document"].as_str().unwrap_or_default();
    Ok(Analyzed {
        words: text.split_whitespace().count(),
    })
}

#[step]
async fn summarize(event: Analyzed, _ctx: Context) -> Result<StopEvent, WorkflowError> {
    ran("summarize");
    stop(json!({ "words": event.words }))
}

#[step]
async fn null(_event: StartEvent, _ctx: Context) -> Result<StopEvent, WorkflowError> {
    ran("null");
    stop(Value::Null)
}

#[step]
async fn fail(event: StartEvent, _ctx: Context) -> Result<StopEvent, WorkflowError> {
    ran("fail");
    Err(WorkflowError::Context(event.data.as_str().unwrap_or("boom").to_string()))
}

#[step]
async fn panics(_event: StartEvent, _ctx: Context) -> Result<StopEvent, WorkflowError> {
    ran("panics");
    panic!("as asked");
}

#[step]
async fn sleep(event: StartEvent, _ctx: Context) -> Result<StopEvent, WorkflowError> {
    ran("sleep");
    let mut unfinished = Unfinished(true);
    tokio::time::sleep(Duration::from_secs_f64(event.data.as_f64().unwrap_or(0.0))).await;
    unfinished.0 = false;
    stop(event.data)
}

#[step]
async fn stray(_event: StartEvent, _ctx: Context) -> Result<Stray, WorkflowError> {
    ran("stray");
    Ok(Stray {})
}

#[step]
async fn fill(event: StartEvent, _ctx: Context) -> Result<StopEvent, WorkflowError> {
    ran("fill");
    stop(Value::String("x".repeat(event.data.as_u64().unwrap_or(0) as usize)))
}

#[step]
async fn keep(event: StartEvent, ctx: Context) -> Result<StopEvent, WorkflowError> {
    ran("keep");
    let value = Opaque(event.data.as_str().unwrap_or_default().as_bytes().to_vec());
    let refs = ctx.session_refs_arc().await;
    let key = refs
        .insert_serializable(Arc::new(value))
        .await
        .map_err(|error| WorkflowError::Context(error.to_string()))?;
    stop(json!(key.to_string()))
}

#[step(emits = [Part])]
async fn split(_event: StartEvent, _ctx: Context) -> Result<StepOutput, WorkflowError> {
    ran("split");
    Ok(StepOutput::Multiple(
        (0..PARTS)
            .map(|number| Box::new(Part { number }) as Box<dyn AnyEvent>)
            .collect(),
    ))
}

#[step]
async fn work(event: Part, _ctx: Context) -> Result<Done, WorkflowError> {
    ran("work");
    Ok(Done { number: event.number })
}

#[step(emits = [StopEvent])]
async fn join(_event: Done, ctx: Context) -> Result<StepOutput, WorkflowError> {
    ran("join");
    Ok(match ctx.collect_events::<Done>(PARTS as usize).await {
        Some(all) => StepOutput::Single(Box::new(StopEvent {
            result: json!(all.iter().map(|done| done.number).sum::<u64>()),
        })),
        None => StepOutput::None,
    })
}

// The benchmark's two, as bench/echo_app.py has them.

#[step]
async fn first(event: StartEvent, _ctx: Context) -> Result<Passed, WorkflowError> {
    Ok(Passed {
        text: event.data["text"].clone(),
    })
}

#[step]
async fn second(event: Passed, _ctx: Context) -> Result<StopEvent, WorkflowError> {
    stop(json!({ "text": event.text }))
}

fn register() {
    register_step_builder("interop::echo", echo_registration);
    register_step_builder("interop::analyze", analyze_registration);
    register_step_builder("interop::summarize", summarize_registration);
    register_step_builder("interop::null", null_registration);
    register_step_builder("interop::fail", fail_registration);
    register_step_builder("interop::panics", panics_registration);
    register_step_builder("interop::sleep", sleep_registration);
    register_step_builder("interop::stray", stray_registration);
    register_step_builder("interop::fill", fill_registration);
    register_step_builder("interop::keep", keep_registration);
    register_step_builder("interop::split", split_registration);
    register_step_builder("interop::work", work_registration);
    register_step_builder("interop::join", join_registration);
    register_step_builder("bench::first", first_registration);
    register_step_builder("bench::second", second_registration);
}

#[tokio::main]
async fn main() {
    let address = std::env::args()
        .nth(1)
        .expect("usage: interop-server ADDRESS")
        .parse()
        .expect("ADDRESS is ip:port");
    register();
    // What BlazenPeerServer::serve does, with a port that we learn: serve itself tells nobody which one 0 became.
    let incoming = TcpIncoming::bind(address).expect("cannot listen").with_nodelay(Some(true));
    println!("listens on http://{}", incoming.local_addr().expect("no address"));
    tonic::transport::Server::builder()
        .add_service(PeerService::new(BlazenPeerServer::new("rust-node")))
        .serve_with_incoming(incoming)
        .await
        .expect("the server failed");
}
