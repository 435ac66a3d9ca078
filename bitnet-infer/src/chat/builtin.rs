//! Templates for models that come without one.

/// A template of our own.
pub struct BuiltIn {
    /// Its name on the command line.
    pub name: &'static str,
    /// The template.
    pub source: &'static str,
    /// Texts that end a turn where no token does.
    pub stops: &'static [&'static str],
}

/// Every built-in template.
pub const BUILT_IN: [BuiltIn; 4] = [
    BuiltIn { name: "chatml", source: CHATML, stops: &["<|im_end|>"] },
    BuiltIn { name: "llama-3", source: LLAMA_3, stops: &["<|eot_id|>"] },
    BuiltIn { name: "bitnet", source: BITNET, stops: &["<|eot_id|>"] },
    BuiltIn { name: "plain", source: PLAIN, stops: &["\nUser:"] },
];

const CHATML: &str = "\
{%- for message in messages -%}
<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{{ '' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{{ '' }}
{%- endif -%}
";

const LLAMA_3: &str = "\
{{- bos_token -}}
{%- for message in messages -%}
<|start_header_id|>{{ message.role }}<|end_header_id|>

{{ message.content | trim }}<|eot_id|>
{%- endfor -%}
{%- if add_generation_prompt -%}
<|start_header_id|>assistant<|end_header_id|>

{{ '' }}
{%- endif -%}
";

const BITNET: &str = "\
{%- for message in messages -%}
{{ message.role | capitalize }}: {{ message.content | trim }}<|eot_id|>
{%- endfor -%}
{%- if add_generation_prompt -%}
Assistant: {{ '' }}
{%- endif -%}
";

const PLAIN: &str = "\
{%- for message in messages -%}
{%- if message.role == 'system' -%}
{{ message.content | trim }}

{% else -%}
{{ message.role | capitalize }}: {{ message.content | trim }}
{% endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
Assistant:
{%- endif -%}
";
