//! Slack's Web API.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::Value;

use crate::setting;

#[derive(Clone)]
pub struct WebApi {
    http: reqwest::Client,
    url: String,
    bot_token: String,
}

impl WebApi {
    pub fn new() -> anyhow::Result<Self> {
        Ok(Self {
            http: reqwest::Client::builder().timeout(Duration::from_secs(60)).build()?,
            url: setting("SLACK_API_URL").unwrap_or("https://slack.com/api/".into()),
            bot_token: setting("SLACK_BOT_TOKEN").context("SLACK_BOT_TOKEN is not set")?,
        })
    }

    /// Calls a method as the bot.
    pub async fn call(&self, method: &str, arguments: &Value) -> anyhow::Result<Value> {
        self.call_as(&self.bot_token, method, arguments).await
    }

    pub async fn call_as(
        &self,
        token: &str,
        method: &str,
        arguments: &Value,
    ) -> anyhow::Result<Value> {
        let request = self.http.post(format!("{}{method}", self.url));
        let request = request.bearer_auth(token).json(arguments);
        let reply: Value = request.send().await?.error_for_status()?.json().await?;
        ensure!(reply["ok"] == true, "{method}: {}", reply["error"]);
        Ok(reply)
    }
}
