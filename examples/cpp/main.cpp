// SPDX-License-Identifier: Apache-2.0
// What calibration text does to other languages, in one linear: Grams per language, a mixture of
// them, and the loss of each solve in each language.
#include <ATen/Context.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/randn.h>

#include <cstdint>
#include <iomanip>
#include <iostream>
#include <map>
#include <memory>
#include <mlcalib/gptq.hpp>
#include <mlcalib/linear.hpp>
#include <mlcalib/rtn.hpp>
#include <mlcalib/runtime.hpp>
#include <mlcalib/statistic.hpp>
#include <string>
#include <utility>
#include <vector>

namespace {

constexpr int64_t kOut = 256, kIn = 512, kTokens = 4096;
const std::vector<std::string> kLanguages = {"en", "sw", "zh"};

at::Tensor gram_of(const mlcalib::Statistic& statistic) { return statistic.state().at("gram"); }

}  // namespace

int main() {
  at::manual_seed(0);
  const at::Tensor weight = at::randn({kOut, kIn}).mul_(0.02);

  // Random activations stand in for a model's. Each language has directions of its own, and so
  // correlates channels in its own way.
  std::map<std::string, std::unique_ptr<mlcalib::Statistic>> statistics;
  for (const std::string& language : kLanguages) {
    const at::Tensor directions = at::randn({kIn / 4, kIn});
    statistics[language] = mlcalib::make_statistic("gram", kIn);
    for (int64_t seen = 0; seen < kTokens; seen += 512) {  // batch by batch: statistics add up
      statistics[language]->update(at::matmul(at::randn({512, kIn / 4}), directions));
    }
  }

  // A mixture is a weighted sum of what the languages have seen.
  const auto mixture = mlcalib::make_statistic("gram", kIn);
  for (const std::string& language : kLanguages) {
    mixture->merge(*statistics[language], 1.0 / static_cast<double>(kLanguages.size()));
  }

  const mlcalib::GptqOptions options{
      .grid = {.bits = 4, .group_size = 128, .range = mlcalib::Range::kGram}};
  const std::vector<std::pair<std::string, mlcalib::QuantizedLinear>> solved = {
      {"rtn", mlcalib::rtn(weight, {.bits = 4, .group_size = 128})},
      {"gptq on en", mlcalib::gptq(weight, gram_of(*statistics["en"]), options)},
      {"gptq on the mixture", mlcalib::gptq(weight, gram_of(*mixture), options)}};

  std::vector<at::Tensor> grams;
  std::cout << "instruction set " << mlcalib::isa() << "; loss per token\n"
            << std::setw(20) << std::left << "" << std::right;
  for (const std::string& language : kLanguages) {
    grams.push_back(gram_of(*statistics[language]));
    std::cout << std::setw(10) << language;
  }
  std::cout << std::fixed << std::setprecision(1) << '\n';
  for (const auto& [method, quantized] : solved) {
    std::cout << std::setw(20) << std::left << method << std::right;
    for (const double loss : mlcalib::losses(weight, quantized, grams)) {
      std::cout << std::setw(10) << loss / kTokens;
    }
    std::cout << '\n';
  }
}
