use blazen_peer::{BlazenPeerClient, SubWorkflowRequest};
use serde_json::json;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let address = std::env::args().nth(1).unwrap_or("http://127.0.0.1:16001".to_string());
    let mut client = BlazenPeerClient::connect(address, "orders").await?;
    let steps = vec!["my_app::analyze".to_string(), "my_app::summarize".to_string()];
    let request = SubWorkflowRequest::new("analyze-pipeline", steps, &json!({"document": "one two three"}), Some(60))?;
    let answer = client.invoke_sub_workflow(request).await?;
    if let Some(error) = &answer.error {
        return Err(error.clone().into());
    }
    println!("{}", answer.result_value()?.unwrap_or_default()); // {"words":3}
    Ok(())
}
