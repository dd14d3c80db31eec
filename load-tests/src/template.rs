//! Templates for stream and publish paths: `{channel}`, `{channels}`, `{channel_query}`.

/// `{channel}`: one channel's name. `{channels}`: all, joined by commas.
/// `{channel_query}`: all as a query, `channel=a&channel=b`.
pub(crate) fn fill(template: &str, channels: &[String]) -> String {
    let query = || {
        channels
            .iter()
            .map(|name| format!("channel={name}"))
            .collect::<Vec<_>>()
            .join("&")
    };
    let mut filled = template.to_owned();
    if filled.contains("{channel}") {
        filled = filled.replace("{channel}", channels.first().map_or("", String::as_str));
    }
    if filled.contains("{channels}") {
        filled = filled.replace("{channels}", &channels.join(","));
    }
    if filled.contains("{channel_query}") {
        filled = filled.replace("{channel_query}", &query());
    }
    filled
}

/// Whether a connection through this template can carry several channels.
pub(crate) fn takes_many(template: &str) -> bool {
    template.contains("{channels}") || template.contains("{channel_query}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placeholders() {
        let names = ["a.1".to_owned(), "a.2".to_owned()];
        assert_eq!(fill("/events/{channel}", &names), "/events/a.1");
        assert_eq!(fill("/m/{channels}?x", &names), "/m/a.1,a.2?x");
        assert_eq!(
            fill("/events?{channel_query}", &names),
            "/events?channel=a.1&channel=a.2"
        );
        assert!(takes_many("/events?{channel_query}") && !takes_many("/events/{channel}"));
    }
}
