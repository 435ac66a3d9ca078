//! Templates of chats against transformers: construct by construct, and those of published models.
//!
//! `scripts/chat_template_cases.py` makes the file of cases.

use std::collections::BTreeMap;

use bitnet_infer::chat::{Message, Template};
use serde::Deserialize;

const CASES: &str = include_str!("../fixtures/chat_templates.json");

#[derive(Deserialize)]
struct Cases {
    conversations: BTreeMap<String, Vec<Message>>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    construct: String,
    /// The template, or the name of a file that has it.
    template: Option<String>,
    file: Option<String>,
    messages: String,
    add_generation_prompt: bool,
    /// `None`: transformers raises an error.
    expected: Option<String>,
}

impl Case {
    fn render(&self, source: String, conversations: &BTreeMap<String, Vec<Message>>) -> Result<String, String> {
        let template = Template::new(source).map_err(|e| e.to_string())?;
        let rendered = template.render(&conversations[&self.messages], self.add_generation_prompt, "<s>", "</s>");
        rendered.map_err(|e| e.to_string())
    }
}

fn cases() -> Cases {
    serde_json::from_str(CASES).expect("cases")
}

#[test]
fn every_construct_gives_the_text_that_transformers_gives() {
    let Cases { conversations, cases } = cases();
    let (mut wrong, mut seen) = (Vec::new(), 0);
    for case in &cases {
        let Some(source) = &case.template else { continue };
        seen += 1;
        let found = case.render(source.clone(), &conversations);
        let right = match case.construct.as_str() {
            "refused" => case.expected.is_some() && found.is_err(),
            "lenient" => case.expected.is_none() && found.is_ok(),
            _ => found.as_ref().ok() == case.expected.as_ref(),
        };
        if !right {
            wrong.push(format!("{}: {source}\n  expected {:?}\n  found    {found:?}", case.construct, case.expected));
        }
    }
    assert!(seen > 150, "{seen} constructs");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn templates_of_published_models_write_what_they_write_in_transformers() {
    let Some(folder) = crate::data_folder::shared("chat-templates") else { return };
    let Cases { conversations, cases } = cases();
    let today = chrono::Local::now().format("%d %b %Y").to_string();
    for case in &cases {
        let Some(file) = &case.file else { continue };
        let source = std::fs::read_to_string(folder.join(file)).expect("a template");
        let found = case.render(source, &conversations);
        let expected = case.expected.as_ref().map(|text| text.replace("TODAY", &today));
        assert_eq!(found.as_ref().ok(), expected.as_ref(), "{file}, {}: {found:?}", case.messages);
    }
}
