//! The real Blazen client, driven by JSON: `interop-client ADDRESS`. One command a line on standard input, one answer a line on
//! standard output, in order; the first answer is connect's. Bytes are lists of numbers.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use blazen_core::session_ref::RegistryKey;
use blazen_peer::pb::PostcardRequest;
use blazen_peer::pb::blazen_peer_client::BlazenPeerClient as Raw;
use blazen_peer::{BlazenPeerClient, PeerError, SubWorkflowRequest};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::sync::Mutex;
use tonic::metadata::{MetadataKey, MetadataValue};
use tonic::transport::Channel;
use uuid::Uuid;

type Shared = Arc<Mutex<BlazenPeerClient>>;

#[derive(Deserialize, Clone)]
struct Invoke {
    workflow: String,
    steps: Vec<String>,
    /// JSON text, sent as it stands.
    input: String,
    timeout_secs: Option<u64>,
    version: u32,
}

#[derive(Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
enum Command {
    Invoke(Invoke),
    Deref {
        uuid: Uuid,
    },
    Release {
        uuid: Uuid,
    },
    /// Any bytes with any metadata, through its public generated client.
    Raw {
        method: String,
        payload: Vec<u8>,
        metadata: BTreeMap<String, String>,
    },
    /// Keeps `in_flight` calls going for `secs` and times them: on the one client, as Blazen's bindings share it, or with
    /// `payload` on clones of the channel below it.
    Bench {
        call: Invoke,
        payload: Option<Vec<u8>>,
        in_flight: usize,
        secs: f64,
    },
}

fn failed(error: &PeerError) -> Value {
    let kind = match error {
        PeerError::Encode(_) => "Encode",
        PeerError::Transport(_) => "Transport",
        PeerError::EnvelopeVersion { .. } => "EnvelopeVersion",
        PeerError::Workflow(_) => "Workflow",
        PeerError::Tls(_) => "Tls",
        PeerError::UnknownStep { .. } => "UnknownStep",
    };
    json!({ "failed": { "kind": kind, "text": error.to_string() } })
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("not UTF-8")
}

fn request(call: &Invoke) -> SubWorkflowRequest {
    SubWorkflowRequest {
        envelope_version: call.version,
        workflow_name: call.workflow.clone(),
        step_ids: call.steps.clone(),
        input_json: call.input.clone().into_bytes(),
        timeout_secs: call.timeout_secs,
    }
}

async fn invoke(client: &Shared, call: &Invoke) -> Result<Value, PeerError> {
    let answer = client.lock().await.invoke_sub_workflow(request(call)).await?;
    let state: BTreeMap<_, _> = answer.state_json.iter().map(|(name, value)| (name, text(value))).collect();
    let refs: BTreeMap<_, _> = answer
        .remote_refs
        .iter()
        .map(|(uuid, it)| {
            (
                uuid.to_string(),
                json!([it.origin_node_id, it.type_tag, it.created_at_epoch_ms]),
            )
        })
        .collect();
    Ok(json!({
        "version": answer.envelope_version,
        "state": state,
        "result_json": answer.result_json.as_deref().map(text),
        "refs": refs,
        "error": answer.error,
    }))
}

async fn raw(mut client: Raw<Channel>, method: &str, payload: Vec<u8>, metadata: &BTreeMap<String, String>) -> Value {
    let mut request = tonic::Request::new(PostcardRequest {
        postcard_payload: payload,
    });
    for (name, value) in metadata {
        let name = MetadataKey::from_bytes(name.as_bytes()).expect("bad metadata name");
        request
            .metadata_mut()
            .insert(name, MetadataValue::try_from(value).expect("bad metadata value"));
    }
    let answer = match method {
        "invoke" => client
            .invoke_sub_workflow(request)
            .await
            .map(|answer| vec![answer.into_inner().postcard_payload]),
        "deref" => client
            .deref_session_ref(request)
            .await
            .map(|answer| vec![answer.into_inner().postcard_payload]),
        "release" => client
            .release_session_ref(request)
            .await
            .map(|answer| vec![answer.into_inner().postcard_payload]),
        "stream" => all_of(client, request).await,
        _ => panic!("no such method: {method}"),
    };
    match answer {
        Ok(payloads) => json!({ "payloads": payloads }),
        Err(status) => json!({ "status": { "code": format!("{:?}", status.code()), "text": status.message() } }),
    }
}

async fn all_of(mut client: Raw<Channel>, request: tonic::Request<PostcardRequest>) -> Result<Vec<Vec<u8>>, tonic::Status> {
    let mut stream = client.stream_sub_workflow_events(request).await?.into_inner();
    let mut payloads = Vec::new();
    while let Some(message) = stream.message().await? {
        payloads.push(message.postcard_payload);
    }
    Ok(payloads)
}

async fn bench(
    client: &Shared,
    channel: &Raw<Channel>,
    call: Invoke,
    payload: Option<Vec<u8>>,
    in_flight: usize,
    secs: f64,
) -> Value {
    let began = Instant::now();
    let end = began + Duration::from_secs_f64(secs);
    let tasks: Vec<_> = (0..in_flight)
        .map(|_| {
            let (client, mut channel, call, payload) = (client.clone(), channel.clone(), call.clone(), payload.clone());
            tokio::spawn(async move {
                let mut took_ms = Vec::new();
                while Instant::now() < end {
                    let began = Instant::now();
                    if let Some(payload) = &payload {
                        let message = PostcardRequest {
                            postcard_payload: payload.clone(),
                        };
                        channel.invoke_sub_workflow(message).await.expect("the call failed");
                    } else {
                        let answer = client
                            .lock()
                            .await
                            .invoke_sub_workflow(request(&call))
                            .await
                            .expect("the call failed");
                        assert_eq!(answer.error, None);
                        answer.result_value().expect("not JSON").expect("no result");
                    }
                    took_ms.push(began.elapsed().as_secs_f64() * 1000.0);
                }
                took_ms
            })
        })
        .collect();
    let mut took_ms = Vec::new();
    for task in tasks {
        took_ms.extend(task.await.expect("a caller failed"));
    }
    json!({ "took_ms": took_ms, "secs": began.elapsed().as_secs_f64() })
}

#[tokio::main]
async fn main() {
    let address = std::env::args().nth(1).expect("usage: interop-client ADDRESS");
    let client = match BlazenPeerClient::connect(address.clone(), "rust-client").await {
        Ok(client) => Arc::new(Mutex::new(client)),
        Err(error) => return println!("{}", failed(&error)),
    };
    let channel = Raw::connect(address).await.expect("a second connection failed");
    println!("{}", json!({ "connected": true }));
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Some(line) = lines.next_line().await.expect("standard input failed") {
        let answer = match serde_json::from_str(&line).expect("not a command") {
            Command::Invoke(call) => invoke(&client, &call).await,
            Command::Deref { uuid } => client
                .lock()
                .await
                .deref_session_ref(RegistryKey(uuid))
                .await
                .map(|bytes| json!({ "bytes": bytes })),
            Command::Release { uuid } => client
                .lock()
                .await
                .release_session_ref(RegistryKey(uuid))
                .await
                .map(|released| json!({ "released": released })),
            Command::Raw {
                method,
                payload,
                metadata,
            } => Ok(raw(channel.clone(), &method, payload, &metadata).await),
            Command::Bench {
                call,
                payload,
                in_flight,
                secs,
            } => Ok(bench(&client, &channel, call, payload, in_flight, secs).await),
        };
        println!("{}", answer.unwrap_or_else(|error| failed(&error)));
    }
}
