//! Products with weights that have a scale for each group of columns: integer sums of a group, added up in f32.

use bitnet_model::quant::add_group;

use super::{Activations, Inputs, Linear};
use crate::kernels::{AlignedVec, GroupedMatrix};

impl Linear {
    /// [`Linear::forward`] with such weights. With quantized inputs the sums of the groups are exact, and
    /// [`add_group`] and the product with the step the only floating point.
    pub(super) fn forward_grouped(&self, matrix: &GroupedMatrix, x: &Activations, out: &mut [f32]) {
        let width = matrix.panel_rows();
        match &x.inputs {
            Inputs::Codes { steps, .. } => {
                let codes = matrix.codes(x.code_rows().expect("quantized inputs"));
                self.each_panel(
                    x,
                    out,
                    |panel, tokens, totals: &mut [f32]| {
                        totals.fill(0.0);
                        matrix.each_group(panel.start / width, &codes, tokens, |sums, scales| {
                            for (totals, sums) in totals.chunks_mut(width).zip(sums.chunks(width)) {
                                let rows = totals.iter_mut().zip(sums).zip(scales);
                                rows.for_each(|((total, &sum), &scale)| *total = add_group(*total, sum, scale));
                            }
                        });
                    },
                    |totals, token, _, out| super::each(totals, out, |total| total * steps[token]),
                );
            }
            Inputs::Floats(values) => self.forward_grouped_floats(matrix, x, values, out),
        }
    }

    fn forward_grouped_floats(
        &self,
        matrix: &GroupedMatrix,
        x: &Activations,
        values: &AlignedVec<f32>,
        out: &mut [f32],
    ) {
        let width = matrix.panel_rows();
        let floats = matrix.floats(x.float_rows(values));
        self.each_panel(
            x,
            out,
            |panel, tokens, totals: &mut [f32]| {
                totals.fill(0.0);
                matrix.each_float_group(panel.start / width, &floats, tokens, |sums, scales| {
                    for (totals, sums) in totals.chunks_mut(width).zip(sums.chunks(width)) {
                        let rows = totals.iter_mut().zip(sums).zip(scales);
                        rows.for_each(|((total, sum), scale)| *total += sum * scale);
                    }
                });
            },
            |totals, _, _, out| super::each(totals, out, |total| total),
        );
    }
}
